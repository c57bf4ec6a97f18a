"""T5 as a student: an encoder-decoder whose training steps are computed without padding."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cotd.students.backends.base import IGNORED, Pair
from cotd.students.backends.seq2seq import Seq2Seq
from cotd.students.backends.t5.packed import token_states
from cotd.students.backends.t5.token_loss import token_loss


class T5(Seq2Seq):
    """T5 v1.0 and v1.1, flan-T5 and mT5."""

    kind = "t5"

    def order(self, pair: Pair) -> tuple[int, int]:
        """By the length of targets alone: attention, which needs neighbours of like length, groups these apart from inputs."""
        return -len(pair.target), pair.kind

    def loss(self, part: dict[str, Any], weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
        learned = part["labels"] != IGNORED
        states = token_states(self.model, part, learned)
        return token_loss(states, self.model.lm_head.weight, part["labels"][learned], weights, label_smoothing)

    def logits(self, part: dict[str, Any], chosen: Tensor) -> Tensor:
        return self.model.lm_head(token_states(self.model, part, chosen)).float()
