"""The student: a small model that answers, and perhaps explains. Evaluation and serving use this same class."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotd.data.cleaning import clean_text
from cotd.data.truncation import Truncation, tail_length
from cotd.errors import CotdError
from cotd.students.backends.choose import make_backend
from cotd.students.base_models import CARD, find_student, load_base, write_model
from cotd.students.seen import Seen, read_seen, write_seen
from cotd.students.validated import Validated, read_validated, write_validated
from cotd.tasks.base import Task
from cotd.tasks.registry import parse_task
from cotd.utils.files import replacing, write_json
from cotd.utils.iteration import each_or_none, find_sublist


@dataclass(frozen=True)
class Prediction:
    """One text's predicted answer.

    Attributes:
        label: the answer; None if what the student wrote holds none, which only free answers can lack.
        score: the answer's probability; None for free answers.
        probabilities: answer → probability, temperature-scaled; they sum to 1. None for free answers.
        truncated: whether the text was too long for the student, so that part of it was not read.

    Example:
        >>> prediction = student.predict(["Broke at once."])[0]
        >>> prediction.score == max(prediction.probabilities.values())
        True
    """

    label: str | None
    score: float | None
    probabilities: dict[str, float] | None
    truncated: bool


class Student:
    """A trained student. Make one with `Student.load`.

    Attributes:
        task: what it answers, and the words it was trained with.
        backend: what its model does, and how; `backend.kind` is "t5", "seq2seq", "causal" or "encoder".
        card: the content of `cotd.json`: method, data and teacher provenance, metrics, `temperature`, and what it does:
            `writes_rationales`, `rationale_before_label`, `rationale_after_label`, `rationale_as_input` (it needs the teacher's
            rationale of each text).
        seen: what it was trained on and selected by; None if that is not known.
        validated: its answers to the examples that it was selected by; None if they have no confidence, or are not known.

    Example:
        >>> student = cotd.Student.load(folder.student)  # or "models:/cotd-student@champion"
        >>> student.predict(["Sturdy and light."])[0].label in student.task.labels
        True
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        task: Task,
        card: dict[str, Any],
        seen: Seen | None = None,
        validated: Validated | None = None,
    ):
        self.task = task
        self.card = card
        self.seen = seen
        self.validated = validated
        self.backend = make_backend(model.eval(), tokenizer, task, card)
        self.max_input_tokens: int = card.get("max_input_tokens", 128)
        self.truncation: Truncation = card.get("truncation", "head")
        self.max_target_tokens: int = card.get("max_target_tokens", 64)
        self.temperature: float = card.get("temperature", 1.0)

    @classmethod
    def load(cls, source: str | Path, device: str | None = None) -> Student:
        """Loads a student from a folder, a hub id, `embedded:NAME` or `models:/NAME@ALIAS` (MLflow).

        Reads safetensors and JSON only. Uses a GPU if there is one, unless `device` says otherwise.

        Raises:
            CotdError: nothing is there, or it is a base model that cotd has not trained.
        """
        import torch

        folder, card = find_student(str(source))
        task = parse_task(card["task"])
        model, tokenizer = load_base(str(folder), task.labels)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, tokenizer, task, card, read_seen(folder), read_validated(folder))

    def save(self, directory: str | Path) -> None:
        """Writes the student in Hugging Face layout plus `cotd.json`, what it has seen and what it answered on validation.

        An existing folder is replaced at the end.
        """
        with replacing(Path(directory)) as temporary:
            write_model(self.model, temporary)
            self.tokenizer.save_pretrained(temporary)
            write_json(temporary / CARD, {**self.card, "task": self.task.to_dict()})
            write_seen(self.seen, temporary)
            write_validated(self.validated, temporary)
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.backend.model

    @model.setter
    def model(self, model: Any) -> None:
        self.backend.model = model

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.backend.tokenizer

    @property
    def first_tokens(self) -> list[int] | None:
        """The first token of each fixed label, by which one step tells the labels apart; None where it does not."""
        return self.backend.first_tokens

    @property
    def can_explain(self) -> bool:
        """Whether it has learned to write rationales."""
        return bool(self.card.get("writes_rationales"))

    @property
    def rationale_before_label(self) -> bool:
        """Whether it writes a rationale before each answer."""
        return bool(self.card.get("rationale_before_label"))

    @property
    def rationale_after_label(self) -> bool:
        """Whether a rationale goes on from what it answered."""
        return bool(self.card.get("rationale_after_label"))

    @property
    def rationale_as_input(self) -> bool:
        """Whether it reads the teacher's rationale with each text."""
        return bool(self.card.get("rationale_as_input"))

    @property
    def free_answers(self) -> bool:
        """Whether it writes its answers, which have no options to choose from."""
        return self.task.free_answers

    @property
    def tail_tokens(self) -> int:
        """How many of the last tokens are read of an input that is longer than `max_input_tokens`."""
        return tail_length(self.truncation, self.max_input_tokens)

    @property
    def answer_kind(self) -> str:
        """The kind of target that holds its answer."""
        return "joint" if self.rationale_before_label else "label"

    @property
    def rationale_kind(self) -> str:
        """The kind of target that holds its rationale."""
        return "joint" if self.rationale_before_label else "after_label" if self.rationale_after_label else "rationale"

    def predict(
        self,
        texts: Sequence[str],
        rationales: Sequence[str] | None = None,
        choices: Sequence[Sequence[str]] | None = None,
        batch_size: int = 64,
    ) -> list[Prediction]:
        """The answer to each text: the likeliest of its options or, for free answers, what the student writes.

        A student that is `rationale_before_label` first writes its rationale.

        Args:
            rationales: for a student that is `rationale_as_input`: the teacher's own rationale of each text, written without
                its gold label; "" if it has none.
            choices: each text's own options, for a task that needs them.

        Raises:
            CotdError: rationales or choices are needed and missing, or given to a student that reads none.
        """
        if self.free_answers:
            return self.written_answers(texts, rationales, choices, batch_size)
        return self.predictions(*self.label_logits(texts, rationales, choices, batch_size), choices)

    def predictions(
        self, logits: Any, truncated: Sequence[bool], choices: Sequence[Sequence[str]] | None = None
    ) -> list[Prediction]:
        """The result of `label_logits` as predictions: each row's likeliest answer and temperature-scaled probabilities."""
        probabilities = (logits / self.temperature).softmax(dim=-1).tolist()  # (N, most options)
        predictions = []
        for row, own, cut in zip(probabilities, each_or_none(choices, len(truncated)), truncated, strict=True):
            by_label = dict(zip(self.task.options(own) or (), row, strict=False))
            label = max(by_label, key=by_label.__getitem__)
            predictions.append(Prediction(label, by_label[label], by_label, cut))
        return predictions

    def label_logits(
        self,
        texts: Sequence[str],
        rationales: Sequence[str] | None = None,
        choices: Sequence[Sequence[str]] | None = None,
        batch_size: int = 64,
    ) -> tuple[Any, list[bool]]:
        """The scores of each text's options, without temperature. Arguments and errors are those of `predict`.

        Returns:
            A float tensor on the CPU of shape (len(texts), most options), -inf where a text has fewer, and whether each text
            was truncated.
        """
        import torch

        if self.free_answers:
            raise CotdError(f"answers of the task '{self.task.name}' are free: they have no scores. Call predict instead.")
        inputs = self.inputs(texts, rationales, choices)
        width = len(self.task.labels) or max(map(len, choices or [()]), default=0)
        logits = torch.full((len(texts), width), -torch.inf)
        truncated = [False] * len(texts)
        for indices, sources, cut in self.batches(inputs, self.answer_kind, batch_size):
            with torch.inference_mode():
                written = self.reasons(sources) if self.rationale_before_label else None
                if self.task.labels:
                    scores = self.backend.label_scores(sources, written)
                else:
                    candidates = [self.candidates((choices or [])[i]) for i in indices]
                    scores = self.backend.score(sources, candidates, written)
                logits[indices, : scores.shape[1]] = scores
            for i, was_cut in zip(indices, cut, strict=True):
                truncated[i] = was_cut
        return logits, truncated

    def candidates(self, choices: Sequence[str]) -> list[list[int]]:
        """The targets of a text's own options."""
        words = [self.task.verbalize(clean_text(option)) for option in choices]
        return self.backend.targets(words, not self.rationale_before_label)

    def written_answers(
        self,
        texts: Sequence[str],
        rationales: Sequence[str] | None,
        choices: Sequence[Sequence[str]] | None,
        batch_size: int,
    ) -> list[Prediction]:
        """Predictions of a task of free answers: what the student writes, parsed."""
        predictions = [Prediction(None, None, None, False)] * len(texts)
        kind = self.answer_kind
        for indices, sources, cut in self.batches(self.inputs(texts, rationales, choices), kind, batch_size):
            for i, ids, was_cut in zip(indices, self.backend.generate(sources, kind, self.max_target_tokens), cut, strict=True):
                answer = ids
                if self.rationale_before_label:  # what was cut off before its answer has none
                    end = find_sublist(ids, self.backend.answer_mark)
                    answer = [] if end is None else ids[end + len(self.backend.answer_mark) :]
                predictions[i] = Prediction(self.task.find(self.tokenizer.decode(answer)), None, None, was_cut)
        return predictions

    def inputs(
        self, texts: Sequence[str], rationales: Sequence[str] | None, choices: Sequence[Sequence[str]] | None = None
    ) -> list[str]:
        """What the student reads: the texts with their options, and with the rationales if it reads them."""
        if self.task.needs_choices and (choices is None or len(choices) != len(texts)):
            raise CotdError(
                f"each text of the task '{self.task.name}' has its own options, and {len(choices or [])} lists of them came with "
                f"{len(texts)} texts. Give the options of each text as choices."
            )
        rendered = self.rendered(texts, choices)
        if not self.rationale_as_input:
            if rationales is not None:
                raise CotdError("this student reads no rationales. Give it texts alone.")
            return rendered
        if rationales is None or len(rationales) != len(texts):
            raise CotdError(
                f"this student was trained by '{self.card.get('method')}': it reads the teacher's rationale with each text, and "
                f"{0 if rationales is None else len(rationales)} rationales came with {len(texts)} texts. "
                "Call predict(texts, rationales), or use a student that needs no teacher."
            )
        return [self.task.with_rationale(text, why) for text, why in zip(rendered, rationales, strict=True)]

    def reasons(self, sources: Sequence[list[int]]) -> list[list[int]]:
        """What a student that is `rationale_before_label` writes before its answer: its rationale and the answer mark."""
        written = self.backend.generate(sources, "joint", self.max_target_tokens)
        return [[*self.rationale_tokens(ids), *self.backend.answer_mark] for ids in written]

    def rationale_tokens(self, ids: list[int]) -> list[int]:
        """The rationale in what was generated: up to the answer mark or the end."""
        end = find_sublist(ids, self.backend.answer_mark) if self.rationale_before_label else None
        return ids[:end]

    def explain(self, texts: Sequence[str], choices: Sequence[Sequence[str]] | None = None, batch_size: int = 32) -> list[str]:
        """The student's own rationale for each text, decoded greedily.

        What a student that was trained without rationales writes means nothing; see `can_explain`.

        Raises:
            CotdError: the student's model cannot write.
        """
        self.require_writing()
        rationales = [""] * len(texts)
        for indices, ids in self.written_rationales(texts, choices, batch_size):
            for i, text in zip(indices, self.tokenizer.batch_decode(ids), strict=True):
                rationales[i] = text.strip()
        return rationales

    def written_rationales(
        self, texts: Sequence[str], choices: Sequence[Sequence[str]] | None, batch_size: int, streamer: Any = None
    ) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Batches of rationales: (positions in `texts`, tokens). A text without an answer for its rationale to follow has none."""
        kind, answers = self.rationale_kind, None
        if self.rationale_after_label:
            said = [p.label for p in self.predict(texts, choices=choices)]
            answers = [
                [] if label is None else self.backend.targets([self.task.verbalize(clean_text(label))])[0] for label in said
            ]
        for indices, sources, _ in self.batches(self.inputs_to_explain(texts, choices), kind, batch_size):
            if answers is None:
                ids = self.backend.generate(sources, kind, self.max_target_tokens, streamer)
                yield indices, [self.rationale_tokens(written) for written in ids]
                continue
            batch = sorted(zip(indices, sources, strict=True), key=lambda row: len(answers[row[0]]))
            for length, group in itertools.groupby(batch, key=lambda row: len(answers[row[0]])):
                if length:
                    rows, read = map(list, zip(*group, strict=True))
                    before = [answers[i] for i in rows]
                    yield rows, self.backend.generate(read, kind, self.max_target_tokens, streamer, before)

    def stream_rationale(self, text: str, on_text: Callable[[str], None], choices: Sequence[str] | None = None) -> None:
        """Like `explain` for one text, calling `on_text` with each part of the rationale as it is written.

        The parts, joined and stripped, are the rationale. There is a single part if a label follows the rationale, whose end
        shows only when the label begins.
        """
        from transformers import TextStreamer

        own = None if choices is None else [choices]
        if self.rationale_before_label:
            on_text(self.explain([text], own)[0])
            return
        self.require_writing()

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if text:
                    on_text(text)

        streamer = Streamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        for _ in self.written_rationales([text], own, 1, streamer):
            pass

    def inputs_to_explain(self, texts: Sequence[str], choices: Sequence[Sequence[str]] | None) -> list[str]:
        """What is read to write rationales: no student that writes them reads others."""
        return self.rendered(texts, choices) if self.rationale_as_input else self.inputs(texts, None, choices)

    def rendered(self, texts: Sequence[str], choices: Sequence[Sequence[str]] | None) -> list[str]:
        """The texts with their options, cleaned as those are that students learn from."""
        return [
            self.task.render(clean_text(text), own and [clean_text(option) for option in own])
            for text, own in zip(texts, each_or_none(choices, len(texts)), strict=True)
        ]

    def require_writing(self) -> None:
        """Raises a CotdError if the student's model cannot write."""
        if not self.backend.writes:
            raise CotdError(
                "this student's model is an encoder, which labels and writes nothing. Use a causal or encoder-decoder student."
            )

    def batches(self, inputs: Sequence[str], kind: str, size: int) -> Iterator[tuple[list[int], list[list[int]], list[bool]]]:
        """Batches of inputs of similar length: (positions in `inputs`, sources that ask for a kind of target, truncated flags)."""
        encoded, cut = self.backend.sources(inputs, kind, self.max_input_tokens, self.truncation)
        order = sorted(range(len(inputs)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            yield indices, [encoded[i] for i in indices], [cut[i] for i in indices]
