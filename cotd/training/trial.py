"""A trial: one student trained one way, and its identity."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from cotd.config.digest import digest
from cotd.data.truncation import Truncation
from cotd.teachers.filters import Filters
from cotd.training.config import TrainingConfig
from cotd.training.methods import METHODS
from cotd.utils.text import format_percent

# Training settings that only methods use whose rationales are targets of their own.
MULTITASK_SETTINGS = ("rationale_weight", "rationale_schedule", "shared_encoder")
# Training settings that change memory and time, and not the student.
PERFORMANCE_SETTINGS = ("micro_batch_size", "gradient_checkpointing")
# Keys of a task that say how data are read, and not what a student learns.
READING_KEYS = ("name", "spellings")


@dataclass(frozen=True)
class Trial:
    """One cell of the grid, or one sample of a search.

    Attributes:
        model: the base model that `size` names.
        base_digest, examples_digest, annotations_digest: content digests of what is trained; the last is None for a
            method that needs no annotations, so that another teacher does not make `finetune` train again.
        samples, filters: which annotations are used: the first n samples of an example, and these filters in place of those
            applied when the annotations were made; None: the annotations as they were made.
        overrides: the settings that distinguish this trial from others of its method, fraction, size and seed, for display.
    """

    method: str
    fraction: float
    size: str
    seed: int
    model: str
    training: TrainingConfig
    task: dict[str, Any]
    base_digest: str
    examples_digest: str
    annotations_digest: str | None
    samples: int | None = None
    filters: Filters | None = None
    overrides: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """A digest of all that decides which student is trained.

        Left out are names (their digests count), display values, and settings that do not change the student or that its
        method does not use.
        """
        method, unused = METHODS[self.method], set(PERFORMANCE_SETTINGS)
        unused |= set() if method.multitask else set(MULTITASK_SETTINGS)
        if not method.writes_rationales and self.task.get("labels"):  # what it writes has no limit
            unused.add("max_target_tokens")
        training = self.training.model_dump(exclude=unused) | {"truncation": self.truncation}
        task = {key: value for key, value in self.task.items() if key not in READING_KEYS}
        identity = {key: value for key, value in self.to_dict().items() if key not in ("model", "size", "overrides")}
        return digest(identity | {"training": training, "task": task})

    @property
    def stages(self) -> list[Trial]:
        """A trial of each stage of its method, which share its steps; itself if it has none."""
        parts = METHODS[self.method].parts
        ends = [round(self.training.steps * number / len(parts)) for number in range(len(parts) + 1)]
        steps = [max(1, end - start) for start, end in itertools.pairwise(ends)]
        return [
            replace(self, method=part.name, training=self.training.model_copy(update={"steps": own}))
            for part, own in zip(parts, steps, strict=True)
        ]

    @property
    def shares_encoder(self) -> bool:
        """Whether an example is encoded once for its label and its rationale."""
        return self.training.shared_encoder and METHODS[self.method].multitask

    @property
    def truncation(self) -> Truncation:
        """How long inputs are cut. A rationale before an example stays whole: only the example's end is cut."""
        return "head" if METHODS[self.method].rationale_as_input else self.training.truncation

    @property
    def title(self) -> str:
        """A readable name, for MLflow and tables."""
        names = [self.method, format_percent(self.fraction), self.size, f"seed {self.seed}", self.variant]
        return " · ".join(name for name in names if name)

    @property
    def variant(self) -> str:
        """The overrides as text, such as "rationale_weight 2"; "" if there are none."""
        return ", ".join(f"{key} {format_setting(value)}" for key, value in self.overrides.items())

    def cost(self, parameters: float) -> float:
        """The amount of computation, as tokens × parameters; only ratios have a meaning.

        Args:
            parameters: of the base model.
        """
        method, training = METHODS[self.method], self.training
        rationale = training.max_target_tokens if method.writes_rationales else 0
        inputs = training.max_input_tokens * (2 if method.multitask and not self.shares_encoder else 1)
        return parameters * training.steps * training.batch_size * (inputs + rationale)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for `trial.json`."""
        return {**asdict(self), "training": self.training.model_dump(), "fraction": float(self.fraction)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Trial:
        """The trial that `to_dict` described."""
        return cls(**{**plain, "training": TrainingConfig(**plain["training"])})


def format_setting(value: Any) -> str:
    """A setting's value as people write it: 0.003, or `length + near_duplicates`."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " + ".join(v if isinstance(v, str) else "".join(v) for v in value) or "none"
    return str(value)
