"""T5's forward pass over padded rows. Unlike packing, nothing of it waits for the GPU.

Pretraining's batches are planned of rows of like length, so that little is padding. The layers are those of
`cotd.packed_t5`, over all places of the rows, padding included, which no real token looks at. Gradient checkpointing, which
models of this size have no use for, is not heeded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cotd.dropout import drop
from cotd.packed_t5 import UNREAD, Group, narrow, norm, pad_group, run_block


class Rows:
    """Stands for `Packing` where sequences are rows already: every place counts as a token.

    Args:
        hidden: (B, W, d). unread: (B, 1, 1, W), as in `Group`; None: the padding, if any, is where no token looks.
    """

    def __init__(self, hidden: Tensor, unread: Tensor | None):
        rows, width = hidden.shape[:2]
        self.groups = [Group(rows, width, rows * width, None, unread)]

    def pad(self, packed: Tensor) -> list[Tensor]:
        """(B · W, d) → its (B, W, d)."""
        return [pad_group(packed, self.groups[0])]


class RowsMemory:
    """Stands for `Memory` where each row is read by one target, in the same order.

    Args:
        states: (B, S, d). unread: (B, 1, 1, S).
    """

    def __init__(self, states: Tensor, unread: Tensor):
        rows, width = states.shape[:2]
        self.states = narrow(states.flatten(0, 1))
        self.group = Group(rows, width, rows * width, None, unread)
        self.unread: list[Tensor | None] = [unread]

    def rows(self, packed: Tensor) -> list[Tensor]:
        """(B · S, d) → its (B, S, d)."""
        return [pad_group(packed, self.group)]


def encode(model: Any, input_ids: Tensor, mask: Tensor) -> Tensor:
    """A T5's encoder's states (B, S, d) of rows (B, S), padded on the right."""
    bias = position_bias(model.encoder, input_ids.shape[1])
    return run_rows(model.encoder, model.shared(input_ids), unread_places(mask), bias)


def decode(model: Any, encoded: Tensor, mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
    """What a T5's output layer reads at each place of the targets (B, T), padded on the right: (B, T, d).

    Args:
        encoded: (B, S, d), by `encode`. mask: (B, S).
    """
    bias = position_bias(model.decoder, decoder_input_ids.shape[1])
    # Padding lies on the right, where no token looks.
    bias = bias + torch.full(bias.shape[2:], UNREAD, dtype=bias.dtype, device=bias.device).triu_(1)
    return run_rows(model.decoder, model.shared(decoder_input_ids), None, bias, RowsMemory(encoded, unread_places(mask)))


def run_rows(stack: Any, hidden: Tensor, unread: Tensor | None, bias: Tensor, memory: RowsMemory | None = None) -> Tensor:
    """A stack over embedded rows (B, W, d): (B, W, d)."""
    rate, training, rows, shape = stack.dropout.p, stack.training, Rows(hidden, unread), hidden.shape
    hidden = drop(hidden.flatten(0, 1), rate, training)
    for block in stack.block:
        hidden = run_block(block, hidden, rows, [bias], rate, memory)
    return drop(norm(stack.final_layer_norm, hidden), rate, training).view(shape)


def unread_places(mask: Tensor) -> Tensor:
    """(B, S), 1 where a row has a token → (B, 1, 1, S), to be added to scores."""
    return ((1.0 - mask.float()) * UNREAD)[:, None, None]


def position_bias(stack: Any, width: int) -> Tensor:
    """(1, H, width, width), which all layers of a stack add to their scores."""
    bias: Tensor = stack.block[0].layer[0].SelfAttention.compute_bias(width, width)
    return bias
