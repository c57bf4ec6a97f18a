"""The T5 while it is pretrained: two linear heads that predict the teachers' states, and the losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, T5Config, T5ForConditionalGeneration

from cotd.hardware import choose_dtype
from cotd.pretraining.config import EncoderTeacherConfig, ObjectivesConfig, ShapeConfig
from cotd.pretraining.rows import decode, encode
from cotd.student import resolve_model, write_model
from cotd.token_loss import token_loss


def t5_config(shape: ShapeConfig, vocabulary: int, dropout: float) -> T5Config:
    """A T5 with tied embeddings, as the students of this project are."""
    return T5Config(
        vocab_size=vocabulary, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout_rate=dropout,
        **shape.model_dump(),
    )  # fmt: skip


class EncoderTeacher:
    """A frozen BERT-like encoder, cut off above the layer that is learned from.

    Args:
        precision: of its arithmetic on a GPU, as `training.precision`; on a processor it is float32.
    """

    def __init__(self, config: EncoderTeacherConfig, device: str | torch.device = "cpu", precision: str = "auto"):
        on_gpu = torch.device(device).type == "cuda"
        dtype = getattr(torch, choose_dtype(precision, use_gpu=True)) if on_gpu else torch.float32
        self.model = AutoModel.from_pretrained(resolve_model(config.model), dtype=dtype).eval().to(device)
        self.model.requires_grad_(False)
        layers = self.model.encoder.layer
        self.model.encoder.layer = layers[: config.layer]
        self.width: int = self.model.config.hidden_size

    def states(self, batch: dict[str, Any]) -> torch.Tensor:
        """For each piece the mean state of the teacher's tokens under it: (B, S, width), float32."""
        with torch.no_grad():
            hidden = self.model(input_ids=batch["teacher_ids"], attention_mask=batch["teacher_mask"]).last_hidden_state
        # Sums up to each token, so that any run's sum is one difference.
        sums = torch.nn.functional.pad(hidden.float().cumsum(1), (0, 0, 1, 0))  # (B, T + 1, width)
        first, last = batch["first"], batch["last"]
        rows = torch.arange(len(first), device=first.device)[:, None]
        return (sums[rows, last + 1] - sums[rows, first]) / (last + 1 - first)[..., None]


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over a text's pieces: (B, S, D) and (B, S) to (B, D)."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)


class PretrainingT5(T5ForConditionalGeneration):
    """A T5 with what pretraining needs besides: heads towards the teachers, and their states' mean and spread.

    `config.teacher_widths` names the heads: `hidden` and `sentence` (the encoder teacher), `answer` (the answer teacher).
    The targets are standardised in each dimension, so that a mean squared error of 1 is what predicting the mean gives,
    and 1 - error is the share of variance explained.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        for name, width in getattr(config, "teacher_widths", {}).items():
            setattr(self, f"{name}_head", nn.Linear(config.d_model, width))
            # Parameters rather than buffers: they are saved and loaded with the weights.
            self.register_parameter(f"{name}_mean", nn.Parameter(torch.zeros(width)))
            self.register_parameter(f"{name}_spread", nn.Parameter(torch.ones(width)))
        self.post_init()

    def freeze_statistics(self) -> None:
        """Keeps the targets' means and spreads from being trained, which would make any error small.

        To be called after loading: transformers makes every parameter that it loads trainable.
        """
        for name in getattr(self.config, "teacher_widths", {}):
            getattr(self, f"{name}_mean").requires_grad_(False)
            getattr(self, f"{name}_spread").requires_grad_(False)

    def regression_loss(self, name: str, states: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Squared error of a head's prediction of a teacher's states, in standardised units, mean over the last axis."""
        standardised = (target - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_spread")
        return (getattr(self, f"{name}_head")(states).float() - standardised).pow(2).mean(-1)

    def encoded(self, batch: dict[str, Any]) -> torch.Tensor:
        """The encoder's states of a batch's inputs, (B, S, d_model)."""
        return encode(self, batch["input_ids"], batch["attention_mask"])

    def first_decoder_state(self, encoded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The state that scores the label words, (B, d_model)."""
        start = torch.full((len(mask), 1), self.config.decoder_start_token_id, device=mask.device)
        return decode(self, encoded, mask, start)[:, 0]

    def hidden_losses(self, batch: dict[str, Any], teacher_states: torch.Tensor) -> dict[str, torch.Tensor]:
        """`hidden`, of every piece's encoder state, and `sentence`, of the text's mean from the first decoder state.

        Args:
            teacher_states: (B, S, width).
        """
        mask, encoded = batch["attention_mask"], self.encoded(batch)
        hidden = (self.regression_loss("hidden", encoded, teacher_states) * mask).sum() / mask.sum()
        whole = masked_mean(teacher_states, mask)
        return {
            "hidden": hidden,
            "sentence": self.regression_loss("sentence", self.first_decoder_state(encoded, mask), whole).mean(),
        }

    def label_scores(self, state: torch.Tensor, label_pieces: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the labels' words, (B, labels), over the whole vocabulary, from first decoder states (B, d_model)."""
        return self.lm_head(self.scaled(state)).float().log_softmax(-1)[:, label_pieces]

    def scaled(self, states: torch.Tensor) -> torch.Tensor:
        """Decoder states as the output layer reads them: with tied embeddings T5 makes them smaller."""
        return states * self.config.d_model**-0.5 if self.config.scale_decoder_outputs else states

    def gold_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Mean cross-entropy in nats of the gold label's word."""
        state = self.first_decoder_state(self.encoded(batch), batch["attention_mask"])
        return torch.nn.functional.nll_loss(self.label_scores(state, batch["label_pieces"]), batch["labels"])

    def answer_losses(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """`answer`, of the answer teacher's state from the first decoder state, and `label`, of its answer.

        `label` is the Kullback-Leibler divergence in nats of the student's first token, over the whole vocabulary, from
        the label words with the teacher's probabilities.
        """
        state = self.first_decoder_state(self.encoded(batch), batch["attention_mask"])
        logits = self.label_scores(state, batch["label_pieces"])
        shares = batch["shares"]
        return {
            "answer": self.regression_loss("answer", state, batch["components"]).mean(),
            "label": (torch.special.entr(shares).neg() - shares * logits).sum(-1).mean(),
        }

    def writing_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Mean token cross-entropy of the target, in nats."""
        labels = batch["labels"]  # (B, T)
        shifted = torch.nn.functional.pad(labels[:, :-1].clamp_min(0), (1, 0), value=self.config.decoder_start_token_id)
        states = decode(self, self.encoded(batch), batch["attention_mask"], shifted)
        real = (labels >= 0).flatten().float()
        return token_loss(
            self.scaled(states.flatten(0, 1)), self.lm_head.weight, labels.flatten().clamp_min(0), real / real.sum()
        )

    def losses(self, batch: dict[str, Any], teacher: EncoderTeacher | None) -> dict[str, torch.Tensor]:
        """The losses of a batch, by objective."""
        if batch["kind"] in ("denoise", "continue", "rationale"):
            return {batch["kind"]: self.writing_loss(batch)}
        if batch["kind"] == "answer":
            return self.answer_losses(batch)
        if batch["kind"] == "gold":
            return {"gold": self.gold_loss(batch)}
        assert teacher is not None, "a batch of hidden states without an encoder teacher"
        return self.hidden_losses(batch, teacher.states(batch))


def total_loss(losses: dict[str, torch.Tensor], objectives: ObjectivesConfig) -> torch.Tensor:
    """The weighted sum of a batch's losses."""
    return torch.stack([getattr(objectives, f"{name}_weight") * loss for name, loss in losses.items()]).sum()


def save_as_t5(model: PretrainingT5, tokenizer: Any, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes the plain T5, without heads, in Hugging Face layout."""
    plain = T5ForConditionalGeneration(T5Config(**{k: v for k, v in model.config.to_dict().items() if k != "teacher_widths"}))
    state = model.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    write_model(plain.to(dtype), folder)
    tokenizer.save_pretrained(folder)
