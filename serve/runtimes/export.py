"""A student for elsewhere: Hugging Face layout, ONNX or CTranslate2, in a folder that says how to use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cotd.errors import CotdError, nearest
from cotd.students.base_models import CARD, write_model
from cotd.students.student import Student
from cotd.utils.files import replacing
from serve.runtimes.base import PROBES, Runtime, check_parity, require_packages

# Rounding alone: nothing is quantised on the way out.
TOLERANCE = 1e-3
# What is needed beyond cotd itself, by format.
PACKAGES = {"hf": (), "onnx": ("onnx", "onnxruntime"), "ctranslate2": ("ctranslate2",)}

# What all formats begin with; of a text that is too long the first tokens are read, and the last `tail`.
TEXTS = """card = json.load(open("cotd.json", encoding="utf-8"))
limit, tail = card["max_input_tokens"], card["tail_tokens"]

def cut(ids):
    return ids if len(ids) <= limit else ids[:limit - tail] + ids[-tail:]

texts = [card["task"]["label_prefix"] + text for text in ["A warm and funny film.", "Dull and lifeless."]]
"""
HF = (
    """
import json, torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
"""
    + TEXTS
    + """tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForSeq2SeqLM.from_pretrained(".", dtype="float32")
batch = tokenizer.pad({"input_ids": [cut(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]}, return_tensors="pt")
start = torch.full((len(texts), 1), model.config.decoder_start_token_id)
with torch.inference_mode():
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], decoder_input_ids=start)
logits = out.logits[:, 0, card["label_token_ids"]]  # (texts, labels)
print(card["task"]["labels"], torch.softmax(logits / card["temperature"], dim=-1).tolist())
"""
)
ONNX = (
    """
import json, numpy as np, onnxruntime, tokenizers
"""
    + TEXTS
    + """tokenizer, session = tokenizers.Tokenizer.from_file("tokenizer.json"), onnxruntime.InferenceSession("model.onnx")
tokenizer.no_truncation()
tokenizer.no_padding()
rows = [cut(e.ids) for e in tokenizer.encode_batch(texts)]
attended = np.array([[i < len(row) for i in range(max(map(len, rows)))] for row in rows], dtype=np.int64)
ids = np.full_like(attended, card["pad_token_id"])
ids[attended == 1] = np.concatenate(rows)
feed = {"input_ids": ids, "attention_mask": attended}
logits = session.run(["logits"], feed)[0] / card["temperature"]  # (texts, labels)
odds = np.exp(logits - logits.max(axis=1, keepdims=True))
print(card["task"]["labels"], (odds / odds.sum(axis=1, keepdims=True)).tolist())
"""
)
CTRANSLATE2 = (
    """
import ctranslate2, json, numpy as np, tokenizers
"""
    + TEXTS
    + """tokenizer, model = tokenizers.Tokenizer.from_file("tokenizer.json"), ctranslate2.Translator(".", compute_type="default")
tokenizer.no_truncation()
tokenizer.no_padding()
tokens = [cut(e.tokens) for e in tokenizer.encode_batch(texts)]
results = model.translate_batch(tokens, beam_size=1, max_decoding_length=1, max_input_length=0, return_logits_vocab=True)
logits = np.stack([np.array(r.logits[0])[0, card["label_token_ids"]] for r in results]) / card["temperature"]
odds = np.exp(logits - logits.max(axis=1, keepdims=True))
print(card["task"]["labels"], (odds / odds.sum(axis=1, keepdims=True)).tolist())
"""
)
USAGE = {
    "hf": ("torch transformers", HF),
    "onnx": ("onnxruntime tokenizers", ONNX),
    "ctranslate2": ("ctranslate2 tokenizers", CTRANSLATE2),
}
NOTES = {
    "hf": "The whole student in Hugging Face layout: `cotd.Student.load` and `cotd serve --student` take this folder too.",
    "onnx": "`model.onnx` is label prediction as one graph: inputs `input_ids` and `attention_mask` (int64, (texts, tokens)), "
    "output `logits` (float32, (texts, labels)). It writes no rationales.",
    "ctranslate2": 'The whole student for CTranslate2, in float32; `compute_type="int8"` quantises it while loading.',
}


def require_format(name: str) -> None:
    """Raises a CotdError if there is no such format, or if it needs packages that are not installed."""
    if name not in PACKAGES:
        raise CotdError(f"unknown format '{name}'; known: {', '.join(PACKAGES)}.{nearest(name, list(PACKAGES))}")
    require_packages(f"the format '{name}'", PACKAGES[name])


def require_free(folder: Path) -> None:
    """Raises a CotdError if there is something at `folder` already: an export replaces nothing."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise CotdError(f"'{folder}' is there already. Name another folder, or remove it.")


def export_student(student: Student, folder: Path, format: str) -> None:
    """Writes a student into a new folder, and checks that what was written predicts what the student does.

    Args:
        folder: does not exist yet, or is empty.
        format: `hf`, `onnx` or `ctranslate2`.

    Raises:
        CotdError: no such format, its packages are missing, the folder is not empty, the student's label needs more than
            one decoder step over the text alone, or the check failed: labels and token ids must be equal on the probes of
            `serve.runtimes.base`, and probabilities within `TOLERANCE`. Nothing is left in the folder's place then.
    """
    require_format(format)
    require_free(folder)
    if student.card.get("rationale_before_label") or student.card.get("rationale_as_input"):
        raise CotdError(
            f"a student trained by '{student.card.get('method')}' is not exported: its label needs more than one decoder step, "
            "or the teacher's rationale. Its own folder is in Hugging Face layout."
        )
    with replacing(folder) as scratch:
        scratch.mkdir(parents=True)
        write(student, scratch, format)
        write_card(student, scratch)
        try:
            check_tokens(student, scratch)
            check_parity(load(student, scratch, format), student, TOLERANCE)
        except CotdError as error:
            raise CotdError(f"the export is refused and removed: {error}") from error
        (scratch / "README.md").write_text(usage(student, format), encoding="utf-8")


def write(student: Student, folder: Path, format: str) -> None:
    """Writes the model and the tokenizer."""
    if format == "hf":
        write_model(student.model, folder)
    elif format == "onnx":
        from serve.runtimes.label_graph import label_graph

        (folder / "model.onnx").write_bytes(label_graph(student).SerializeToString())
    else:
        from serve.runtimes.ctranslate2 import convert

        convert(student, folder)
    student.tokenizer.save_pretrained(folder)


def load(student: Student, folder: Path, format: str) -> Runtime:
    """What was written, read back."""
    if format == "hf":
        return Student.load(folder, device="cpu")
    if format == "onnx":
        from serve.runtimes.onnx import OnnxScorer

        return OnnxScorer(student, (folder / "model.onnx").read_bytes())
    from serve.runtimes.ctranslate2 import CTranslate2Scorer

    return CTranslate2Scorer(student, folder, "float32")


def write_card(student: Student, folder: Path) -> None:
    """Writes `cotd.json`: the student's card, and what a reader without cotd has to know."""
    card: dict[str, Any] = {
        **student.card,
        "task": student.task.to_dict(),
        "temperature": student.temperature,
        "max_input_tokens": student.max_input_tokens,
        "truncation": student.truncation,
        "tail_tokens": student.tail_tokens,
        "label_token_ids": student.first_tokens,
        "pad_token_id": student.tokenizer.pad_token_id,
    }
    (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False), encoding="utf-8")


def check_tokens(student: Student, folder: Path) -> None:
    """Raises a CotdError unless the exported tokenizer, read without transformers, gives the student's token ids."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CotdError("its tokenizer cannot be written as a tokenizer.json.")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for text in PROBES:
        whole = student.tokenizer(student.task.label_prefix + text)["input_ids"]
        if tokenizer.encode(student.task.label_prefix + text).ids != whole:
            raise CotdError(f"its tokenizer.json does not split '{text[:40]}' as the student's tokenizer does.")


def usage(student: Student, format: str) -> str:
    """The exported folder's README.md."""
    packages, snippet = USAGE[format]
    method = student.card.get("method", "unknown")
    labels = ", ".join(student.task.labels)
    return (
        f"# A student of the task '{student.task.name}'\n\n"
        f"Labels: {labels}. Trained by `{method}`; `cotd.json` says on what. Written by `cotd export --format {format}`.\n\n"
        f"{NOTES[format]}\n\n"
        f"```bash\npip install {packages}\n```\n\n"
        f"In this folder:\n\n```python{snippet}```\n\n"
        f"Texts of more than {student.max_input_tokens} tokens are cut. When this was written, labels were equal to the "
        f"student's and probabilities within {TOLERANCE} of its own, on {len(PROBES)} probes.\n"
    )
