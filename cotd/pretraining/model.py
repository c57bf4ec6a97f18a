"""The T5 while it is pretrained: two linear heads that predict the teachers' states, and the losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, T5Config, T5ForConditionalGeneration

from cotd.pretraining.config import EncoderTeacherConfig, ObjectivesConfig, ShapeConfig
from cotd.student import resolve_model, write_model


def t5_config(shape: ShapeConfig, vocabulary: int, dropout: float) -> T5Config:
    """A T5 with tied embeddings, as the students of this project are."""
    return T5Config(
        vocab_size=vocabulary, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout_rate=dropout,
        **shape.model_dump(),
    )  # fmt: skip


class EncoderTeacher:
    """A frozen BERT-like encoder, cut off above the layer that is learned from."""

    def __init__(self, config: EncoderTeacherConfig, device: str | torch.device = "cpu"):
        self.model = AutoModel.from_pretrained(resolve_model(config.model), dtype=torch.float32).eval().to(device)
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

    def first_decoder_state(self, encoded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The state that scores the label words, (B, d_model)."""
        start = torch.full((len(mask), 1), self.config.decoder_start_token_id, device=mask.device)
        decoded = self.decoder(input_ids=start, encoder_hidden_states=encoded, encoder_attention_mask=mask, use_cache=False)
        return decoded.last_hidden_state[:, 0]

    def hidden_losses(self, batch: dict[str, Any], teacher_states: torch.Tensor) -> dict[str, torch.Tensor]:
        """`hidden`, of every piece's encoder state, and `sentence`, of the text's mean from the first decoder state.

        Args:
            teacher_states: (B, S, width).
        """
        mask = batch["attention_mask"]
        encoded = self.encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        hidden = (self.regression_loss("hidden", encoded, teacher_states) * mask).sum() / mask.sum()
        whole = masked_mean(teacher_states, mask)
        return {
            "hidden": hidden,
            "sentence": self.regression_loss("sentence", self.first_decoder_state(encoded, mask), whole).mean(),
        }

    def label_scores(self, state: torch.Tensor, label_pieces: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the labels' words, (B, labels), over the whole vocabulary, from first decoder states (B, d_model)."""
        # As T5 with tied embeddings scores a token.
        return self.lm_head(state * self.config.d_model**-0.5).float().log_softmax(-1)[:, label_pieces]

    def gold_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Mean cross-entropy in nats of the gold label's word."""
        mask = batch["attention_mask"]
        encoded = self.encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        scores = self.label_scores(self.first_decoder_state(encoded, mask), batch["label_pieces"])
        return torch.nn.functional.nll_loss(scores, batch["labels"])

    def answer_losses(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """`answer`, of the answer teacher's state from the first decoder state, and `label`, of its answer.

        `label` is the Kullback-Leibler divergence in nats of the student's first token, over the whole vocabulary, from
        the label words with the teacher's probabilities.
        """
        mask = batch["attention_mask"]
        encoded = self.encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        state = self.first_decoder_state(encoded, mask)
        logits = self.label_scores(state, batch["label_pieces"])
        shares = batch["shares"]
        return {
            "answer": self.regression_loss("answer", state, batch["components"]).mean(),
            "label": (torch.special.entr(shares).neg() - shares * logits).sum(-1).mean(),
        }

    def writing_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Mean token cross-entropy of the target, in nats."""
        logits = self(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten(), ignore_index=-100)

    def losses(self, batch: dict[str, Any], teacher: EncoderTeacher | None) -> dict[str, torch.Tensor]:
        """The losses of a batch, by objective."""
        if batch["kind"] in ("denoise", "rationale"):
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
