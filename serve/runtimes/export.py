"""Exports of a student: Hugging Face layout, ONNX or CTranslate2, in a folder whose README.md says how to use it."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

from cotd.errors import CotdError, unknown
from cotd.students.base_models import CARD, write_model
from cotd.students.seen import write_seen
from cotd.students.student import Student
from cotd.students.validated import write_validated
from cotd.tasks.samples import sample_examples
from cotd.utils.files import replacing
from serve.runtimes.base import Runtime, StudentRuntime, label_step_obstacle
from serve.runtimes.packages import require_packages
from serve.runtimes.parity import EXACT, PROBES, check_parity

TOLERANCE = EXACT  # nothing is quantised
# Format → packages that it needs beyond cotd itself. Its README.md is readme/FORMAT.md.
FORMATS: dict[str, tuple[str, ...]] = {"hf": (), "onnx": ("onnx", "onnxruntime"), "ctranslate2": ("ctranslate2",)}


def require_format(name: str) -> None:
    """Raises a CotdError if there is no such format, or if it needs packages that are not installed."""
    if name not in FORMATS:
        raise CotdError(unknown("format", name, FORMATS))
    require_packages(f"the format '{name}'", FORMATS[name])


def require_free(folder: Path) -> None:
    """Raises a CotdError if something is at `folder` already, except an empty folder: an export replaces nothing."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CotdError(f"'{folder}' exists already. Name another folder, or remove it.")


def export_student(student: Student, folder: Path, format: str) -> None:
    """Writes a student into a new folder, and checks that what was written predicts what the student does.

    Args:
        folder: does not exist yet, or is empty.
        format: `hf`, `onnx` or `ctranslate2`.

    Raises:
        CotdError: there is no such format, its packages are missing, the folder is not empty, the student's label needs more
            than one decoder step of a T5 over the text alone, or the check failed: labels and token ids must be equal on the probes
            of `serve.runtimes.parity`, and probabilities within `TOLERANCE`. Nothing is left behind then.
    """
    require_format(format)
    require_free(folder)
    if student.rationale_before_label or student.rationale_as_input:
        raise CotdError(
            f"a student trained by '{student.card.get('method')}' cannot be exported: its label needs more than one decoder "
            "step, or the teacher's rationale. Use its own folder, which is in Hugging Face layout."
        )
    if problem := label_step_obstacle(student):
        raise CotdError(f"an export {problem}. Use the student's own folder, which is in Hugging Face layout.")
    with replacing(folder) as scratch:
        scratch.mkdir(parents=True)
        try:
            exported = write_and_load(student, scratch, format)
            check_tokens(student, scratch)
            check_parity(exported, student, TOLERANCE)
        except CotdError as error:
            raise CotdError(f"the export failed and was removed: {error}") from error
        (scratch / "README.md").write_text(readme(student, format), encoding="utf-8")


def write_and_load(student: Student, folder: Path, format: str) -> Runtime:
    """Writes model, tokenizer and card, and reads the model back."""
    graph = folder / "model.onnx"
    if format == "hf":
        write_model(student.model, folder)
    elif format == "onnx":
        from serve.runtimes.label_graph import label_graph

        graph.write_bytes(label_graph(student).SerializeToString())
    else:
        from serve.runtimes.ctranslate2 import convert

        convert(student, folder)
    student.tokenizer.save_pretrained(folder)
    write_card(student, folder)
    write_seen(student.seen, folder)
    write_validated(student.validated, folder)
    if format == "hf":
        return StudentRuntime(Student.load(folder, device="cpu"))
    if format == "onnx":
        from serve.runtimes.onnx import OnnxScorer

        return OnnxScorer(student, graph.read_bytes())
    from serve.runtimes.ctranslate2 import CTranslate2Scorer

    return CTranslate2Scorer(student, folder, "float32")


def write_card(student: Student, folder: Path) -> None:
    """Writes `cotd.json`: the student's card, and what a program without cotd has to know."""
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
    for text in (student.task.label_prefix + probe for probe in PROBES):
        if tokenizer.encode(text).ids != student.tokenizer(text, verbose=False)["input_ids"]:
            raise CotdError(f"its tokenizer.json does not split '{text[:40]}' as the student's tokenizer does.")


def readme(student: Student, format: str) -> str:
    """The exported folder's README.md."""
    template = Path(__file__).parent / "readme" / f"{format}.md"
    return Template(template.read_text(encoding="utf-8")).substitute(
        task=student.task.name,
        labels=", ".join(student.task.labels),
        texts=json.dumps([sample.text for sample in sample_examples(student.task)[:2]], ensure_ascii=False),
        method=student.card.get("method", "unknown"),
        max_input_tokens=student.max_input_tokens,
        tolerance=TOLERANCE,
        probes=len(PROBES),
    )
