"""Training settings of the papers, by name: `training.preset`. Other keys of the block override a preset's.

Neither paper trains in reduced precision, or says so: `training.precision` is not part of a preset, nor are `micro_batch_size`
and `gradient_checkpointing`, which change no student.
"""

from __future__ import annotations

from typing import Any

from cotd.errors import unknown

# What both codes leave to transformers' Seq2SeqTrainer, and T5 v1.1's own dropout.
TRAINER_DEFAULTS: dict[str, Any] = {
    "optimizer": "adamw", "schedule": "linear", "warmup_steps": 0, "beta2": 0.999, "weight_decay": 0.0, "label_smoothing": 0.0,
    "dropout": 0.1, "patience": None, "shared_encoder": False, "rationale_schedule": "constant",
    "truncation": "head", "weight_average": None, "gradient_clipping": 1.0, "finetune": "full", "chat": False,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # The SC4001 code. It weighs both losses alike, which is λ = 1; the report's text says λ = 0.5.
    "sc4001": TRAINER_DEFAULTS | {
        "steps": 3500, "batch_size": 8, "learning_rate": 2e-5, "rationale_weight": 1.0, "eval_every": 250,
        "max_input_tokens": 512, "max_target_tokens": 64,
    },
    # The defaults of the code that Hsieh et al. 2023 published (google-research/distilling-step-by-step, run.py). It weighs
    # both losses alike (α = 0.5), which is λ = 1. It cuts targets at 256 tokens and generation at 64, which no label reaches.
    "hsieh2023": TRAINER_DEFAULTS | {
        "steps": 10_000, "batch_size": 64, "learning_rate": 5e-5, "rationale_weight": 1.0, "eval_every": 250,
        "max_input_tokens": 1024, "max_target_tokens": 256,
    },
}  # fmt: skip

# What students of a kind need that is not the embedded T5's: tried with SmolLM2-135M and MiniLM-L6. Encoder-decoders: as BART
# is finetuned.
KINDS: dict[str, dict[str, Any]] = {
    "t5": {},
    "seq2seq": {"optimizer": "adamw", "learning_rate": 5e-5},
    "causal": {"optimizer": "adamw", "learning_rate": 3e-5, "dropout": 0.0},
    "encoder": {"optimizer": "adamw", "learning_rate": 1e-4},
}
LORA = {"optimizer": "adamw", "learning_rate": 3e-4}


def kind_defaults(kind: str, lora: bool, steps: int) -> dict[str, Any]:
    """The defaults of a `training` block for a kind of student. Args: lora: whether LoRA is trained. steps: of the training."""
    warmup = {} if kind == "t5" else {"warmup_steps": steps // 10}
    return KINDS[kind] | warmup | (LORA if lora else {})


def apply_preset(plain: Any) -> Any:
    """A plain `training` block with its preset's values instead of the preset's name.

    Raises:
        ValueError: there is no such preset.
    """
    if not isinstance(plain, dict) or plain.get("preset") is None:
        return plain
    explicit = {key: value for key, value in plain.items() if key != "preset"}
    name = plain["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(unknown("preset", name, PRESETS))
    return PRESETS[name] | explicit
