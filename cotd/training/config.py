"""How a student is trained: the `training` block of a study."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cotd.config.model import ConfigModel
from cotd.data.truncation import Truncation
from cotd.training.presets import apply_preset


class TrainingConfig(ConfigModel):
    """The `training` block. The defaults are this project's, for the embedded student."""

    preset: str | None = Field(
        None, exclude=True, description="a paper's settings (cotd/training/presets.py): sc4001 or hsieh2023; other keys override it"
    )  # fmt: skip
    steps: int = Field(300, ge=1, description="optimiser steps, the same for every fraction, as in the papers")
    batch_size: int = Field(32, ge=1, description="examples a step; cot methods add a rationale target for each")
    micro_batch_size: int | None = Field(
        None, ge=1,
        description="examples whose gradients are computed at once (gradient accumulation); less takes less memory, and trains the same",
    )  # fmt: skip
    gradient_checkpointing: bool = Field(
        False, description="compute each layer twice instead of keeping what its gradients need: less memory, more time, same student"
    )  # fmt: skip
    optimizer: Literal["scaled_adamw", "adamw", "adafactor"] = Field(
        "scaled_adamw",
        description="scaled_adamw: steps relative to each matrix's size, for learning rates some ten times larger",
    )
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    learning_rate: float = Field(2e-3, gt=0, description="for a pretrained base; from random weights or embeddings alone, 5e-3")
    warmup_steps: int = Field(20, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    gradient_clipping: float | None = Field(
        1.0, gt=0, description="gradients of a larger norm are scaled down to this one; null: never"
    )
    rationale_weight: float = Field(0.5, ge=0, description="λ in L = L_label + λ L_rationale (SC4001 report: 0.5)")
    rationale_schedule: Literal["constant", "linear"] = Field(
        "constant", description="linear: λ falls in a straight line, from rationale_weight at the first step to 0 at the end"
    )
    shared_encoder: bool = Field(
        False,
        description="cot methods: an example is encoded once for label and rationale, and the decoder is told which to write",
    )
    dropout: float = Field(0.1, ge=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    weight_average: float | None = Field(
        None, gt=0, lt=1, description="score, select and keep the weights' exponential moving average, of this decay"
    )
    eval_every: int = Field(50, ge=1, description="steps between validation scores; the best one is kept")
    patience: int | None = Field(None, ge=1, description="stop after this many scores without a new best")
    max_input_tokens: int = Field(128, ge=8)
    truncation: Truncation = Field(
        "head_tail",
        description="what is read of an example of more than max_input_tokens: a quarter of them from its beginning and three "
        "quarters from its end, where the verdict is; or (head) its first ones, as in the papers. Methods that read a rationale "
        "with the example use head",
    )
    max_target_tokens: int = Field(64, ge=4)
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast if the processor or GPU multiplies it in hardware, else float32"
    )

    def rationale_weight_at(self, step: int) -> float:
        """λ at a step; steps are counted from 0."""
        return self.rationale_weight * (1 - step / self.steps if self.rationale_schedule == "linear" else 1)

    @model_validator(mode="before")
    @classmethod
    def resolve_preset(cls, plain: Any) -> Any:
        """Replaces the preset by its values: a trial is the same however they were written."""
        return apply_preset(plain)
