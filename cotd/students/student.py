"""The student: a T5 that predicts labels and writes rationales. Evaluation and serving use this same class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotd.data.truncation import Truncation, tail_length, truncate
from cotd.errors import CotdError
from cotd.students.base_models import CARD, load_base, model_advice, resolve_model, write_model
from cotd.students.hub import fetch_student
from cotd.tasks.base import Task
from cotd.utils.files import read_json, replacing, write_json
from cotd.utils.iteration import find_sublist

# The cache is asked for: a base whose configuration says `use_cache: false`, as the embedded student's does, would read all that
# it has written anew for each token.
GREEDY: dict[str, Any] = {"num_beams": 1, "do_sample": False, "use_cache": True}


@dataclass(frozen=True)
class Prediction:
    """One text's predicted label.

    Attributes:
        score: the label's probability.
        probabilities: label → probability, temperature-scaled; they sum to 1.
        truncated: whether the text was longer than the student reads, so that part of it was not seen.
    """

    label: str
    score: float
    probabilities: dict[str, float]
    truncated: bool


class Student:
    """A trained student. Make one with `Student.load`.

    Attributes:
        task: the label set, its words, and the prefixes and marks it was trained with.
        card: what `cotd.json` says: method, data and teacher provenance, metrics, `temperature`, and what it does:
            `writes_rationales`, `rationale_before_label` (its label comes after its rationale), `rationale_as_input` (it needs the
            teacher's rationale of each text).
    """

    def __init__(self, model: Any, tokenizer: Any, task: Task, card: dict[str, Any]):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.task = task
        self.card = card
        self.max_input_tokens: int = card.get("max_input_tokens", 128)
        self.truncation: Truncation = card.get("truncation", "head")
        self.max_target_tokens: int = card.get("max_target_tokens", 64)
        self.temperature: float = card.get("temperature", 1.0)
        self.first_tokens = first_tokens(tokenizer, task)
        self.answer_mark: list[int] = tokenizer(task.answer_mark, add_special_tokens=False)["input_ids"]

    @classmethod
    def load(cls, source: str | Path, device: str | None = None) -> Student:
        """Loads a student from a folder, a hub id, `embedded:NAME` or `models:/NAME@ALIAS` (MLflow).

        Reads safetensors and JSON only. On a GPU where there is one, unless `device` says otherwise.

        Raises:
            CotdError: nothing is there, or it is a bare T5 that has not been trained by cotd.
        """
        folder = resolve_model(str(source))
        if not Path(folder).is_dir():
            folder = fetch_student(folder, CARD, model_advice(folder))
        card_path = Path(folder) / CARD
        if not card_path.is_file():
            raise CotdError(
                f"'{source}' is not a trained student: it has no {CARD}. "
                "Train one with `cotd sweep` or `cotd train`; `models:/NAME@champion` names the promoted one."
            )
        card = read_json(card_path)
        model, tokenizer = load_base(folder)
        import torch

        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, tokenizer, Task.from_dict(card["task"]), card)

    def save(self, directory: str | Path) -> None:
        """Writes the student in Hugging Face layout plus `cotd.json`; an existing folder is replaced at the end."""
        import shutil

        target = Path(directory)
        with replacing(target) as scratch:
            write_model(self.model, scratch)
            self.tokenizer.save_pretrained(scratch)
            write_json(scratch / CARD, {**self.card, "task": self.task.to_dict()})
            shutil.rmtree(target, ignore_errors=True)

    def predict(self, texts: Sequence[str], rationales: Sequence[str] | None = None, batch_size: int = 64) -> list[Prediction]:
        """The label of each text, by scoring the label words in one decoder step; nothing is generated.

        Two kinds differ: a student that `rationale_before_label` writes its rationale, and the words are scored after it; one that
        `rationale_as_input` needs the teacher's.

        Args:
            rationales: the teacher's own rationale of each text, written without its gold label; "" where it has none.

        Raises:
            CotdError: rationales are needed and not given, or given to a student that reads none.
        """
        return self.predictions(*self.label_logits(texts, rationales, batch_size))

    def predictions(self, logits: Any, truncated: Sequence[bool]) -> list[Prediction]:
        """What `label_logits` amounts to: the likeliest label of each row and its temperature-scaled probabilities."""
        import torch

        probabilities = torch.softmax(logits / self.temperature, dim=-1)  # (N, labels)
        predictions = []
        for row, cut in zip(probabilities.tolist(), truncated, strict=True):
            best = max(range(len(row)), key=row.__getitem__)
            by_label = dict(zip(self.task.labels, row, strict=True))
            predictions.append(Prediction(self.task.labels[best], row[best], by_label, cut))
        return predictions

    def label_logits(
        self, texts: Sequence[str], rationales: Sequence[str] | None = None, batch_size: int = 64
    ) -> tuple[Any, list[bool]]:
        """Unscaled scores of the label words. Arguments and errors are those of `predict`.

        Returns:
            A float tensor on the CPU of shape (len(texts), len(task.labels)), and whether each text was truncated.
        """
        import torch

        texts = self.inputs(texts, rationales)
        prefix = self.task.rationale_prefix if self.rationale_before_label else self.task.label_prefix
        scores = torch.empty(len(texts), len(self.task.labels))
        truncated = [False] * len(texts)
        for indices, batch, cut in self.batches(texts, prefix, batch_size):
            with torch.inference_mode():
                scores[indices] = self.word_scores(batch)
            for i, was_cut in zip(indices, cut, strict=True):
                truncated[i] = was_cut
        return scores, truncated

    def inputs(self, texts: Sequence[str], rationales: Sequence[str] | None) -> list[str]:
        """What the student reads: the texts, with the rationales where it reads them."""
        method = self.card.get("method", "rationale_input")
        if not self.rationale_as_input:
            if rationales is not None:
                raise CotdError("this student reads no rationales: give it texts alone.")
            return list(texts)
        if rationales is None or len(rationales) != len(texts):
            raise CotdError(
                f"this student was trained by '{method}': it reads the teacher's rationale beside each text, and "
                f"{0 if rationales is None else len(rationales)} rationales came with {len(texts)} texts. "
                "Give predict(texts, rationales), or use a student that needs no teacher."
            )
        return [self.task.with_rationale(text, why) for text, why in zip(texts, rationales, strict=True)]

    def word_scores(self, batch: dict[str, Any]) -> Any:
        """The label words' logits for one padded batch, after what precedes the label: (B, labels), on the CPU."""
        import torch

        start = self.model.config.decoder_start_token_id
        if not self.rationale_before_label:
            written = [[start]] * len(batch["input_ids"])
            read = {"input_ids": batch["input_ids"]}
        else:
            encoded = self.model.get_encoder()(**batch)
            read = {"encoder_outputs": encoded}
            generated = self.model.generate(
                encoder_outputs=encoded, attention_mask=batch["attention_mask"],
                max_new_tokens=self.max_target_tokens, **GREEDY,
            )  # fmt: skip
            written = [[start, *self.rationale_ids(ids), *self.answer_mark] for ids in generated.tolist()]
        # Padding on the right: the decoder looks back only, and what it says beyond a row's end is not read.
        width = max(map(len, written))
        decoded = torch.tensor([[*ids, *[self.tokenizer.pad_token_id] * (width - len(ids))] for ids in written])  # (B, T)
        out = self.model(
            **read, attention_mask=batch["attention_mask"], decoder_input_ids=decoded.to(self.model.device), use_cache=False
        )
        last = torch.tensor([len(ids) - 1 for ids in written])
        return out.logits[torch.arange(len(written)), last][:, self.first_tokens].float().cpu()

    def rationale_ids(self, ids: list[int]) -> list[int]:
        """The rationale's tokens of a generated sequence: to the answer's mark or the end, without special tokens."""
        special = set(self.tokenizer.all_special_ids)
        ids = [i for i in ids if i not in special]
        end = find_sublist(ids, self.answer_mark) if self.rationale_before_label else None
        return ids if end is None else ids[:end]

    def explain(self, texts: Sequence[str], batch_size: int = 32, max_new_tokens: int | None = None) -> list[str]:
        """The student's own rationale for each text, decoded greedily.

        A student trained without rationales has learned none; what it writes then means nothing
        (`can_explain` says which kind this is).
        """
        import torch

        rationales = [""] * len(texts)
        for indices, batch, _ in self.batches(texts, self.explaining_prefix, batch_size):
            begun = self.begun_rationales(len(indices))
            with torch.inference_mode():
                ids = self.model.generate(
                    **batch, decoder_input_ids=begun, max_new_tokens=max_new_tokens or self.max_target_tokens, **GREEDY
                )
            written = [self.rationale_ids(row) for row in ids[:, begun.shape[1] :].tolist()]
            for i, text in zip(indices, self.tokenizer.batch_decode(written), strict=True):
                rationales[i] = text.strip()
        return rationales

    def stream_rationale(self, text: str, on_text: Callable[[str], None]) -> None:
        """Like `explain` for one text, calling `on_text` with each piece of the rationale as it is written.

        The pieces, joined and stripped, are the rationale. It is one piece where a label follows it: that it has ended is
        known when the label begins.
        """
        if self.rationale_before_label:
            on_text(self.explain([text])[0])
            return
        import torch
        from transformers import TextStreamer

        class Aloud(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if text:
                    on_text(text)

        for _, batch, _ in self.batches([text], self.explaining_prefix, 1):
            streamer = Aloud(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
            with torch.inference_mode():
                self.model.generate(
                    **batch,
                    decoder_input_ids=self.begun_rationales(1),
                    max_new_tokens=self.max_target_tokens,
                    streamer=streamer,
                    **GREEDY,
                )

    @property
    def explaining_prefix(self) -> str:
        """What stands before a text whose rationale is wanted."""
        return self.task.label_prefix if self.card.get("shared_encoder") else self.task.rationale_prefix

    @property
    def rationale_prompt(self) -> list[int]:
        """What the decoder reads before it writes a rationale, where the encoder does not tell it to."""
        if not self.card.get("shared_encoder"):
            return []
        return self.tokenizer(self.task.rationale_prefix, add_special_tokens=False)["input_ids"]

    def begun_rationales(self, rows: int) -> Any:
        """The decoder's first inputs for rationales, (rows, 1 + prompt)."""
        import torch

        begun = [self.model.config.decoder_start_token_id, *self.rationale_prompt]
        return torch.tensor([begun] * rows, device=self.model.device)

    @property
    def tail_tokens(self) -> int:
        """How many of the last tokens are read of an input that is longer than `max_input_tokens`."""
        return tail_length(self.truncation, self.max_input_tokens)

    @property
    def can_explain(self) -> bool:
        return bool(self.card.get("writes_rationales"))

    @property
    def rationale_before_label(self) -> bool:
        return bool(self.card.get("rationale_before_label"))

    @property
    def rationale_as_input(self) -> bool:
        return bool(self.card.get("rationale_as_input"))

    def batches(self, texts: Sequence[str], prefix: str, size: int) -> Iterator[tuple[list[int], dict[str, Any], list[bool]]]:
        """Padded batches of texts of similar length: (positions in `texts`, model inputs, truncated flags)."""
        # Not verbose: it would warn of indexing errors, of which a T5, whose positions are relative, has none.
        encoded = self.tokenizer([prefix + t for t in texts], verbose=False)["input_ids"] if len(texts) else []
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            cut = [len(encoded[i]) > self.max_input_tokens for i in indices]
            rows = [truncate(encoded[i], self.max_input_tokens, self.tail_tokens) for i in indices]
            batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.model.device)
            yield indices, {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}, cut


def first_tokens(tokenizer: Any, task: Task) -> list[int]:
    """The first token of each label word, in the order of `task.labels`.

    Raises:
        CotdError: two words begin with the same token, so that one decoder step cannot tell them apart.
    """
    ids = [tokenizer(task.verbalizers[label], add_special_tokens=False)["input_ids"][0] for label in task.labels]
    if len(set(ids)) < len(ids):
        raise CotdError(
            f"the tokenizer begins two of the label words {', '.join(task.verbalizers.values())} with the same token; "
            "choose other words in the task."
        )
    return ids
