"""A student that is loaded, checked and ready to predict, and the name it is served under."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from cotd import assets
from cotd.data.files import names_files
from cotd.errors import CotdError
from cotd.evaluation.cascade import choose_threshold, handed_on
from cotd.students.base_models import resolve_model
from cotd.students.student import Prediction, Student
from cotd.students.vocabulary import known_characters, surely_unread
from cotd.tasks.samples import Sample
from serve.log import LOG
from serve.runtimes.base import Runtime, Unfit
from serve.runtimes.registry import choose_runtime, make_runtime
from serve.schemas import ModelName


@dataclass(frozen=True, eq=False)
class Served:
    """A student with its runtime. A request keeps the one it began with.

    Attributes:
        runtime_name: as in `serve.runtimes.registry.RUNTIMES`.
        folder: where the student was loaded from.
        larger: who answers the texts that it is not sure of, in a cascade.
        threshold: the confidence below which it hands a text on.
    """

    name: ModelName
    student: Student
    runtime: Runtime
    runtime_name: str
    folder: str
    larger: Served | None = None
    threshold: float = 0.0
    loaded_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def load(cls, source: str, name: ModelName, runtime: str, larger: Served | None = None, below: str = "auto") -> Served:
        """Loads and checks a student.

        Args:
            larger: who answers what it is not sure of. below: how sure it must be, see `cotd.evaluation.cascade`.

        Raises:
            CotdError: it cannot be loaded.
            Unfit: it does not pass its check, or cannot be in a cascade with the larger one.
        """
        folder = resolve_model(source)
        student = Student.load(folder)
        threshold = cascade_threshold(below, folder, larger.folder) if larger else 0.0
        runtime_name = choose_runtime(runtime, student)
        return cls(name, student, make_runtime(runtime, student), runtime_name, folder, larger, threshold)

    def predict(self, texts: Sequence[Sample]) -> list[Prediction]:
        """The answer to each text."""
        return self.runtime.predict(*self.split(texts))

    def explain(self, texts: Sequence[Sample]) -> list[str]:
        """The student's own rationale for each text."""
        texts_alone, choices = self.split(texts)
        return self.runtime.student.explain(texts_alone, choices=choices)

    def unread(self, text: Sample) -> bool:
        """Whether a text has characters that the student cannot read."""
        return surely_unread(text.text, self.known_characters)

    @cached_property
    def known_characters(self) -> frozenset[str] | None:
        """Those that the student's tokenizer has tokens for; None for all."""
        return known_characters(self.student.tokenizer)

    def unsure(self, predictions: Sequence[Prediction]) -> list[int]:
        """The positions of the predictions that it leaves to the larger student."""
        return handed_on([p.score for p in predictions], self.threshold) if self.larger else []

    def writer(self, answer: Answer) -> Served:
        """Who writes the reason of an answer: the student that gave it if that can, else the other one."""
        if answer.by.student.can_explain or self.larger is None:
            return answer.by
        return self.larger if answer.by is self else self

    @property
    def can_explain(self) -> bool:
        """Whether it, or the larger student, has learned to write rationales."""
        return self.student.can_explain or (self.larger is not None and self.larger.student.can_explain)

    def split(self, texts: Sequence[Sample]) -> tuple[list[str], list[tuple[str, ...]] | None]:
        """The texts alone, and their options if the task needs them."""
        choices = [text.choices or () for text in texts] if self.student.task.needs_choices else None
        return [text.text for text in texts], choices

    @property
    def licences(self) -> dict[str, str]:
        """Source → licence, of the examples, the teacher and the base model that the student comes from."""
        card, others = self.student.card, self.larger.licences if self.larger else {}
        sources = [card.get("base"), (card.get("data") or {}).get("source"), (card.get("teacher") or {}).get("model")]
        return others | {source: licence_of(source) for source in sources if isinstance(source, str)}


@dataclass(frozen=True)
class Answer:
    """A prediction, who made it, and whether the text has characters that they cannot read."""

    prediction: Prediction
    by: Served
    unread: bool = False


def cascade_threshold(below: str, student: str, larger: str) -> float:
    """The threshold of a cascade of two students. Raises Unfit if they cannot be one."""
    try:
        threshold = choose_threshold(below, student, larger)
    except CotdError as error:
        raise Unfit(*error.problems) from error
    if threshold > 1:
        LOG.warning("no confidence is enough for '%s': the larger student answers everything", below)
    return threshold


def licence_of(source: str) -> str:
    """The licence of an embedded asset; of anything else, where to look."""
    if assets.is_embedded(source):
        return assets.get_asset(source).licence
    is_file = names_files(source) or Path(source).is_absolute()
    return "unknown: a private file" if is_file else f"unknown: see hub:{source}"


def pin(source: str) -> tuple[ModelName, str]:
    """What a source names now, and a source that will always name the same.

    Raises:
        CotdError: the registry cannot be reached, or has no such model or alias.
    """
    from cotd.storage.model_cache import model_version

    name, version = model_version(source)
    return ModelName(name=name, version=version), source if version == "local" else f"models:/{name}/{version}"
