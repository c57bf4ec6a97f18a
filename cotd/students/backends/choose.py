"""The backend of a model."""

from __future__ import annotations

from typing import Any

from cotd.students.backends.base import Backend
from cotd.students.backends.kinds import model_kind
from cotd.tasks.base import Task


def make_backend(model: Any, tokenizer: Any, task: Task, card: dict[str, Any]) -> Backend:
    """The backend of the model's kind; see `Backend`."""
    kind = model_kind(model.config)
    if kind == "t5":
        from cotd.students.backends.t5.backend import T5

        return T5(model, tokenizer, task, card)
    if kind == "causal":
        from cotd.students.backends.causal.backend import Causal

        return Causal(model, tokenizer, task, card)
    if kind == "encoder":
        from cotd.students.backends.encoder import Encoder

        return Encoder(model, tokenizer, task, card)
    from cotd.students.backends.seq2seq import Seq2Seq

    return Seq2Seq(model, tokenizer, task, card)
