"""A student that is loaded, checked and ready to predict, and the name it is served under."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cotd import assets
from cotd.data.files import names_files
from cotd.students.base_models import resolve_model
from cotd.students.student import Prediction, Student
from cotd.tasks.samples import Sample
from serve.runtimes.base import Runtime
from serve.runtimes.registry import choose_runtime, make_runtime
from serve.schemas import ModelName


@dataclass(frozen=True, eq=False)
class Served:
    """A student with its runtime. A request keeps the one it began with.

    Attributes:
        runtime_name: as in `serve.runtimes.registry.RUNTIMES`.
        folder: where the student was loaded from.
    """

    name: ModelName
    student: Student
    runtime: Runtime
    runtime_name: str
    folder: str
    loaded_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def load(cls, source: str, name: ModelName, runtime: str) -> Served:
        """Loads and checks a student.

        Raises:
            CotdError: it cannot be loaded.
            Unfit: it does not pass its check.
        """
        folder = resolve_model(source)
        student = Student.load(folder)
        return cls(name, student, make_runtime(runtime, student), choose_runtime(runtime, student), folder)

    def predict(self, texts: Sequence[Sample]) -> list[Prediction]:
        """The answer to each text."""
        return self.runtime.predict(*self.split(texts))

    def explain(self, texts: Sequence[Sample]) -> list[str]:
        """The student's own rationale for each text."""
        texts_alone, choices = self.split(texts)
        return self.student.explain(texts_alone, choices=choices)

    def split(self, texts: Sequence[Sample]) -> tuple[list[str], list[tuple[str, ...]] | None]:
        """The texts alone, and their options if the task needs them."""
        choices = [text.choices or () for text in texts] if self.student.task.needs_choices else None
        return [text.text for text in texts], choices

    @property
    def licences(self) -> dict[str, str]:
        """Source → licence, of the examples, the teacher and the base model that the student comes from."""
        card = self.student.card
        sources = [card.get("base"), (card.get("data") or {}).get("source"), (card.get("teacher") or {}).get("model")]
        return {source: licence_of(source) for source in sources if isinstance(source, str)}


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
