"""A trial: one student trained one way, and its identity."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from cotd.config.digest import digest
from cotd.data.truncation import Truncation
from cotd.teachers.filters import Filters
from cotd.training.config import TrainingConfig
from cotd.training.methods import METHODS
from cotd.utils.text import format_percent

# Settings that mean something to methods alone whose rationales are targets of their own.
RATIONALE_SETTINGS = ("rationale_weight", "rationale_schedule")

# What was trained before there were such settings, and is found by the id that it had then.
BEFORE = {"truncation": "head", "weight_average": None}


@dataclass(frozen=True)
class Trial:
    """One cell of the grid, or one sample of a search.

    Attributes:
        model: the base model that `size` names.
        samples, filters: which of the annotations are learned from: the first n samples of a review, and these filters in
            place of those that were applied when the annotations were made; None: the annotations as they were made.
        varied: what sets this trial apart from others of its method, fraction, size and seed, for people to read: key →
            value. No part of its identity, which the values are.
        base_digest, reviews_digest, annotations_digest: content digests of what is trained; the last is None for a
            method that needs no annotations, so that another teacher does not make `finetune` train again.
    """

    method: str
    fraction: float
    size: str
    seed: int
    model: str
    training: TrainingConfig
    task: str
    base_digest: str
    reviews_digest: str
    annotations_digest: str | None
    samples: int | None = None
    filters: Filters | None = None
    varied: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        identity = self.to_dict()
        del identity["model"], identity["size"], identity["varied"]  # names; base_digest is what they name
        for key in ("micro_batch_size", "gradient_checkpointing"):  # how, not what
            del identity["training"][key]
        if not self.shares_encoder:
            del identity["training"]["shared_encoder"]
        if self.training.rationale_schedule == "constant" or not METHODS[self.method].multitask:
            del identity["training"]["rationale_schedule"]
        identity["training"]["truncation"] = self.truncation
        for key, before in BEFORE.items():
            if identity["training"][key] == before:
                del identity["training"][key]
        for key in ("samples", "filters"):
            if identity[key] is None:
                del identity[key]
        return digest(identity)

    @property
    def shares_encoder(self) -> bool:
        """Whether a review is encoded once for its label and its rationale: only methods that write both apart do."""
        return self.training.shared_encoder and METHODS[self.method].multitask

    @property
    def truncation(self) -> Truncation:
        """How inputs that are too long are cut: of a rationale with a review after it always the end, so that it stays whole."""
        return "head" if METHODS[self.method].rationale_as_input else self.training.truncation

    @property
    def title(self) -> str:
        """A name a person can read, for MLflow and tables."""
        names = [self.method, format_percent(self.fraction), self.size, f"seed {self.seed}", self.arm]
        return " · ".join(name for name in names if name)

    @property
    def arm(self) -> str:
        """What sets this trial apart from others of its method, fraction, size and seed; "" where nothing does."""
        return ", ".join(f"{key} {readable(value)}" for key, value in self.varied.items())

    def cost(self, parameters: float) -> float:
        """How much there is to compute, in a unit of no meaning: tokens times parameters.

        Args:
            parameters: of the base model.
        """
        method, training = METHODS[self.method], self.training
        rationale = training.max_target_tokens if method.writes_rationales else 0
        inputs = training.max_input_tokens * (2 if method.multitask and not self.shares_encoder else 1)
        return parameters * training.steps * training.batch_size * (inputs + rationale)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "training": self.training.model_dump(), "fraction": float(self.fraction)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Trial:
        return cls(**{**plain, "training": TrainingConfig(**{**BEFORE, **plain["training"]})})


def readable(value: Any) -> str:
    """A setting's value as people write it: 0.003, or `length + near_duplicates`."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " + ".join(v if isinstance(v, str) else "".join(v) for v in value) or "none"
    return str(value)
