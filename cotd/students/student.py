"""The student: a T5 that predicts labels and writes rationales. Evaluation and serving use this same class."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotd.data.truncation import Truncation, tail_length, truncate
from cotd.errors import CotdError
from cotd.students.base_models import CARD, find_student, load_base, write_model
from cotd.tasks.base import Task
from cotd.tasks.registry import parse_task
from cotd.utils.files import replacing, write_json
from cotd.utils.iteration import find_sublist

# The cache must be requested: a base whose configuration says `use_cache: false`, as the embedded student's does, would
# otherwise read all that it has written again for each token.
GREEDY: dict[str, Any] = {"num_beams": 1, "do_sample": False, "use_cache": True}


@dataclass(frozen=True)
class Prediction:
    """One text's predicted label.

    Attributes:
        score: the label's probability.
        probabilities: label → probability, temperature-scaled; they sum to 1.
        truncated: whether the text was too long for the student, so that part of it was not read.

    Example:
        >>> prediction = student.predict(["Broke at once."])[0]
        >>> prediction.score == max(prediction.probabilities.values())
        True
    """

    label: str
    score: float
    probabilities: dict[str, float]
    truncated: bool


class Student:
    """A trained student. Make one with `Student.load`.

    Attributes:
        task: the label set, its verbalizers, and the prefixes and marks it was trained with.
        card: the content of `cotd.json`: method, data and teacher provenance, metrics, `temperature`, and what it does:
            `writes_rationales`, `rationale_before_label`, `rationale_as_input` (it needs the teacher's rationale of each text).
        first_tokens: the first token of each label's verbalizer.

    Example:
        >>> student = cotd.Student.load(folder.student)  # or "models:/cotd-student@champion"
        >>> student.predict(["Sturdy and light."])[0].label in student.task.labels
        True
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

        Reads safetensors and JSON only. Uses a GPU if there is one, unless `device` says otherwise.

        Raises:
            CotdError: nothing is there, or it is a base model that cotd has not trained.
        """
        import torch

        folder, card = find_student(str(source))
        model, tokenizer = load_base(str(folder))
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, tokenizer, parse_task(card["task"]), card)

    def save(self, directory: str | Path) -> None:
        """Writes the student in Hugging Face layout plus `cotd.json`; an existing folder is replaced at the end."""
        with replacing(Path(directory)) as temporary:
            write_model(self.model, temporary)
            self.tokenizer.save_pretrained(temporary)
            write_json(temporary / CARD, {**self.card, "task": self.task.to_dict()})
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def can_explain(self) -> bool:
        """Whether it has learned to write rationales."""
        return bool(self.card.get("writes_rationales"))

    @property
    def rationale_before_label(self) -> bool:
        """Whether it writes a rationale before each label."""
        return bool(self.card.get("rationale_before_label"))

    @property
    def rationale_as_input(self) -> bool:
        """Whether it reads the teacher's rationale with each text."""
        return bool(self.card.get("rationale_as_input"))

    @property
    def tail_tokens(self) -> int:
        """How many of the last tokens are read of an input that is longer than `max_input_tokens`."""
        return tail_length(self.truncation, self.max_input_tokens)

    @property
    def rationale_prefix(self) -> str:
        """The input prefix of a text whose rationale is to be written."""
        return self.task.label_prefix if self.card.get("shared_encoder") else self.task.rationale_prefix

    @property
    def rationale_prompt(self) -> list[int]:
        """What the decoder reads before it writes a rationale, if the encoder's input does not say so."""
        if not self.card.get("shared_encoder"):
            return []
        return self.tokenizer(self.task.rationale_prefix, add_special_tokens=False)["input_ids"]

    def predict(self, texts: Sequence[str], rationales: Sequence[str] | None = None, batch_size: int = 64) -> list[Prediction]:
        """The label of each text, by scoring the verbalizers in one decoder step; nothing is generated.

        A student that is `rationale_before_label` first writes its rationale.

        Args:
            rationales: for a student that is `rationale_as_input`: the teacher's own rationale of each text, written without
                its gold label; "" if it has none.

        Raises:
            CotdError: rationales are needed and missing, or given to a student that reads none.
        """
        return self.predictions(*self.label_logits(texts, rationales, batch_size))

    def predictions(self, logits: Any, truncated: Sequence[bool]) -> list[Prediction]:
        """The result of `label_logits` as predictions: each row's likeliest label and temperature-scaled probabilities."""
        probabilities = (logits / self.temperature).softmax(dim=-1).tolist()  # (N, labels)
        predictions = []
        for row, cut in zip(probabilities, truncated, strict=True):
            by_label = dict(zip(self.task.labels, row, strict=True))
            label = max(by_label, key=by_label.__getitem__)
            predictions.append(Prediction(label, by_label[label], by_label, cut))
        return predictions

    def label_logits(
        self, texts: Sequence[str], rationales: Sequence[str] | None = None, batch_size: int = 64
    ) -> tuple[Any, list[bool]]:
        """The verbalizers' logits, without temperature. Arguments and errors are those of `predict`.

        Returns:
            A float tensor on the CPU of shape (len(texts), len(task.labels)), and whether each text was truncated.
        """
        import torch

        texts = self.inputs(texts, rationales)
        prefix = self.task.rationale_prefix if self.rationale_before_label else self.task.label_prefix
        logits = torch.empty(len(texts), len(self.task.labels))
        truncated = [False] * len(texts)
        for indices, batch, cut in self.batches(texts, prefix, batch_size):
            with torch.inference_mode():
                logits[indices] = self.verbalizer_logits(batch)
            for i, was_cut in zip(indices, cut, strict=True):
                truncated[i] = was_cut
        return logits, truncated

    def inputs(self, texts: Sequence[str], rationales: Sequence[str] | None) -> list[str]:
        """What the student reads: the texts, with the rationales if it reads them."""
        if not self.rationale_as_input:
            if rationales is not None:
                raise CotdError("this student reads no rationales. Give it texts alone.")
            return list(texts)
        if rationales is None or len(rationales) != len(texts):
            raise CotdError(
                f"this student was trained by '{self.card.get('method')}': it reads the teacher's rationale with each text, and "
                f"{0 if rationales is None else len(rationales)} rationales came with {len(texts)} texts. "
                "Call predict(texts, rationales), or use a student that needs no teacher."
            )
        return [self.task.with_rationale(text, why) for text, why in zip(texts, rationales, strict=True)]

    def verbalizer_logits(self, batch: dict[str, Any]) -> Any:
        """The verbalizers' logits for one padded batch, after what precedes the label: (B, labels), on the CPU."""
        import torch

        start = self.model.config.decoder_start_token_id
        if self.rationale_before_label:
            encoded = self.model.get_encoder()(**batch)
            inputs = {"encoder_outputs": encoded}
            generated = self.model.generate(
                encoder_outputs=encoded, attention_mask=batch["attention_mask"], max_new_tokens=self.max_target_tokens, **GREEDY
            )
            decoder_inputs = [[start, *self.rationale_tokens(ids), *self.answer_mark] for ids in generated.tolist()]
        else:
            inputs = {"input_ids": batch["input_ids"]}
            decoder_inputs = [[start]] * len(batch["input_ids"])
        # Padding is on the right: the decoder looks back only, and its output beyond a row's end is not used.
        width = max(map(len, decoder_inputs))
        padded = torch.tensor([ids + [self.tokenizer.pad_token_id] * (width - len(ids)) for ids in decoder_inputs])  # (B, T)
        output = self.model(
            **inputs, attention_mask=batch["attention_mask"], decoder_input_ids=padded.to(self.model.device), use_cache=False
        )
        last = torch.tensor([len(ids) - 1 for ids in decoder_inputs])
        return output.logits[torch.arange(len(last)), last][:, self.first_tokens].float().cpu()

    def rationale_tokens(self, ids: list[int]) -> list[int]:
        """The rationale in a generated sequence: up to the answer mark or the end, without special tokens."""
        special = set(self.tokenizer.all_special_ids)
        ids = [i for i in ids if i not in special]
        end = find_sublist(ids, self.answer_mark) if self.rationale_before_label else None
        return ids[:end]

    def explain(self, texts: Sequence[str], batch_size: int = 32) -> list[str]:
        """The student's own rationale for each text, decoded greedily.

        What a student that was trained without rationales writes means nothing; see `can_explain`.
        """
        rationales = [""] * len(texts)
        for indices, batch, _ in self.batches(texts, self.rationale_prefix, batch_size):
            ids = self.write_rationales(batch)
            written = [self.rationale_tokens(row) for row in ids.tolist()]
            for i, text in zip(indices, self.tokenizer.batch_decode(written), strict=True):
                rationales[i] = text.strip()
        return rationales

    def stream_rationale(self, text: str, on_text: Callable[[str], None]) -> None:
        """Like `explain` for one text, calling `on_text` with each part of the rationale as it is written.

        The parts, joined and stripped, are the rationale. There is a single part if a label follows the rationale, whose end
        shows only when the label begins.
        """
        from transformers import TextStreamer

        if self.rationale_before_label:
            on_text(self.explain([text])[0])
            return

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if text:
                    on_text(text)

        streamer = Streamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        for _, batch, _ in self.batches([text], self.rationale_prefix, 1):
            self.write_rationales(batch, streamer)

    def write_rationales(self, batch: dict[str, Any], streamer: Any = None) -> Any:
        """Generates rationales for one padded batch: token ids (B, T), without what the decoder was given to begin with."""
        import torch

        start = [self.model.config.decoder_start_token_id, *self.rationale_prompt]
        begun = torch.tensor([start] * len(batch["input_ids"]), device=self.model.device)
        with torch.inference_mode():
            ids = self.model.generate(
                **batch, decoder_input_ids=begun, max_new_tokens=self.max_target_tokens, streamer=streamer, **GREEDY
            )
        return ids[:, len(start) :]

    def batches(self, texts: Sequence[str], prefix: str, size: int) -> Iterator[tuple[list[int], dict[str, Any], list[bool]]]:
        """Padded batches of texts of similar length: (positions in `texts`, model inputs, truncated flags)."""
        # Not verbose: it would warn of indexing errors, which a T5, whose positions are relative, does not have.
        encoded = self.tokenizer([prefix + t for t in texts], verbose=False)["input_ids"] if len(texts) else []
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            cut = [len(encoded[i]) > self.max_input_tokens for i in indices]
            rows = [truncate(encoded[i], self.max_input_tokens, self.tail_tokens) for i in indices]
            batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.model.device)
            yield indices, {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}, cut


def first_tokens(tokenizer: Any, task: Task) -> list[int]:
    """The first token of each verbalizer, in the order of `task.labels`.

    Raises:
        CotdError: two verbalizers begin with the same token, so that one decoder step cannot distinguish them.
    """
    ids = [tokenizer(task.verbalize(label), add_special_tokens=False)["input_ids"][0] for label in task.labels]
    if len(set(ids)) < len(ids):
        raise CotdError(
            f"the tokenizer begins two of the verbalizers {', '.join(map(task.verbalize, task.labels))} with the same token. "
            "Choose other verbalizers in the task."
        )
    return ids
