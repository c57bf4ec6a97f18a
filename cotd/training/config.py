"""How a student is trained: the `training` block of a study."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from cotd.config.model import ConfigModel
from cotd.data.truncation import Truncation
from cotd.training.presets import apply_preset, kind_defaults


class Lora(ConfigModel):
    """Low-rank adaptation (Hu et al. 2021): each layer's weights plus a product of two narrow matrices, which alone are learned."""

    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1, description="the product is multiplied by alpha / rank")
    targets: list[str] | None = Field(
        None, min_length=1, description="names of the layers, as in [q_proj, v_proj]; null: all but embeddings and output"
    )


class Finetuning(ConfigModel):
    """Which of a base model's weights are trained: all, the last layers', or a low-rank addition, which is merged at the end."""

    last_layers: int | None = Field(None, ge=1)
    lora: Lora | None = None

    @model_validator(mode="before")
    @classmethod
    def full_is_all(cls, plain: Any) -> Any:
        return {} if plain == "full" else plain

    @model_validator(mode="after")
    def one_way(self) -> Finetuning:
        if self.last_layers and self.lora:
            raise ValueError("last_layers and lora are mutually exclusive: remove one")
        return self

    @model_serializer
    def as_written(self) -> str | dict[str, Any]:
        return {key: value for key, value in self if value is not None} or "full"

    def __str__(self) -> str:
        if self.lora:
            return f"LoRA of rank {self.lora.rank}"
        return f"last {self.last_layers} layers" if self.last_layers else "full"


class TrainingConfig(ConfigModel):
    """The `training` block. The defaults are this project's, for the embedded student; see `for_kind` for others."""

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
        description="scaled_adamw: steps relative to each matrix's size, for learning rates some ten times larger; by default "
        "adamw for students other than T5",
    )
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    learning_rate: float = Field(
        2e-3, gt=0,
        description="for a pretrained T5; from random weights or embeddings alone, 5e-3; by default 5e-5 of other encoder-decoders, "
        "3e-5 of causal models, 1e-4 of encoders, and 3e-4 with LoRA",
    )  # fmt: skip
    beta2: float = Field(0.98, gt=0, lt=1, description="how slowly AdamW forgets the size of gradients")
    warmup_steps: int = Field(20, ge=0, description="by default a tenth of the steps for students other than T5")
    weight_decay: float = Field(0.01, ge=0)
    finetune: Finetuning = Field(
        default_factory=Finetuning,
        description="which weights are trained: full, {last_layers: 4} or {lora: {rank: 8}}; what is saved is a plain model always",
    )
    chat: bool = Field(
        False,
        description="causal students: texts stand in the tokenizer's chat template, as models that were taught to chat know it",
    )
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
    dropout: float = Field(0.1, ge=0, lt=1, description="by default 0 for causal models")
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

    def for_kind(self, kind: str, **settings: Any) -> TrainingConfig:
        """This block for a kind of student: what it does not set is as that kind needs it.

        Args:
            kind: of the base model, see `cotd.students.backends.kinds`. settings: keys in place of the block's.
        """
        explicit = {key: getattr(self, key) for key in self.model_fields_set} | settings
        lora = explicit.get("finetune", self.finetune).lora is not None
        return self.model_copy(update=kind_defaults(kind, lora, explicit.get("steps", self.steps)) | explicit)

    @model_validator(mode="before")
    @classmethod
    def resolve_preset(cls, plain: Any) -> Any:
        """Replaces the preset by its values: a trial is the same however they were written."""
        return apply_preset(plain)
