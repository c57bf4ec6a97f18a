"""The search of a study: which training settings are tried, how often, and when a poor one is stopped early."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, field_validator, model_validator

from cotd.config.model import ConfigModel
from cotd.study.grid import training_problems
from cotd.training.config import TrainingConfig

# Training keys that a search cannot vary → what to do instead.
FIXED = {
    "preset": "name the keys it sets",
    "steps": "it is the budget of a sample, which ASHA saves of",
    "eval_every": "samples are compared at the same steps",
    "patience": "ASHA is what ends a sample early",
}


class Distribution(ConfigModel):
    """What one setting is drawn from: exactly one of the three."""

    uniform: list[float] | None = Field(None, min_length=2, max_length=2, description="[lowest, highest]")
    loguniform: list[float] | None = Field(
        None, min_length=2, max_length=2, description="[lowest, highest], evenly in its logarithm"
    )
    choice: list[Any] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def one_kind(self) -> Distribution:
        kinds = [k for k in ("uniform", "loguniform", "choice") if getattr(self, k) is not None]
        if len(kinds) != 1:
            raise ValueError("needs one of uniform: [lowest, highest], loguniform: [lowest, highest], choice: [values]")
        if (bounds := self.uniform or self.loguniform) and not bounds[0] < bounds[1]:
            raise ValueError(f"{kinds[0]} needs the lowest value first, and {bounds[0]:g} is not below {bounds[1]:g}")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("loguniform needs values above 0")
        return self


class AshaConfig(ConfigModel):
    """Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning")."""

    grace_steps: int = Field(100, ge=1, description="steps that every sample is given; the first rung")
    reduction: float = Field(3, gt=1, description="at each rung the best 1/reduction continue; a rung is reduction × the last")


class SearchConfig(ConfigModel):
    """A search of the training settings by validation accuracy, with the one combination that the grid names."""

    samples: int = Field(ge=1, description="settings to try; raising it later keeps those that were tried")
    seed: int = Field(0, ge=0, description="of the draws; the student's own is grid.seed")
    space: dict[str, Distribution] = Field(min_length=1, description="key of the training block → what it is drawn from")
    asha: AshaConfig | None = Field(AshaConfig(), description="null: every sample is trained to its end")

    @field_validator("space")
    @classmethod
    def training_keys(cls, space: dict[str, Distribution]) -> dict[str, Distribution]:
        problems = []
        for key, distribution in space.items():
            values: list[Any] = distribution.choice or distribution.uniform or distribution.loguniform or []
            if distribution.choice is None and key in TrainingConfig.model_fields:
                kind = TrainingConfig.model_fields[key].annotation
                if kind not in (int, float, float | None):
                    problems.append(f"{key} is not numeric; use choice: [values]")
                    continue
                values = [math.ceil(values[0]), math.floor(values[1])] if kind is int else values
            problems += training_problems(key, values, FIXED)
        if problems:
            raise ValueError("; ".join(problems))
        return space
