"""T5's forward pass over padded rows. Unlike packing, nothing of it waits for the GPU.

Pretraining's batches are planned of rows of like length, so that little is padding. The layers are those of
`cotd.packed_t5`, over all places of the rows, padding included, which no real token looks at.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cotd.packed_t5 import UNREAD, Group, narrow, pad_group, run_stack


class Rows:
    """Stands for `Packing` where sequences are rows already: every place counts as a token.

    Args:
        hidden: (B, W, d). unread: (B, 1, 1, W), as in `Group`; None: the padding, if any, is where no token looks.
    """

    def __init__(self, hidden: Tensor, unread: Tensor | None):
        rows, self.width = hidden.shape[:2]
        self.groups = [Group(rows, self.width, rows * self.width, None, unread)]

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
    hidden = model.shared(input_ids)
    rows = Rows(hidden, unread_places(mask))
    return run_stack(model.encoder, hidden.flatten(0, 1), rows).view(hidden.shape)


def decode(model: Any, encoded: Tensor, mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
    """What a T5's output layer reads at each place of the targets (B, T), padded on the right: (B, T, d).

    Args:
        encoded: (B, S, d), by `encode`. mask: (B, S).
    """
    hidden = model.shared(decoder_input_ids)
    memory = RowsMemory(encoded, unread_places(mask))
    return run_stack(model.decoder, hidden.flatten(0, 1), Rows(hidden, None), memory).view(hidden.shape)


def unread_places(mask: Tensor) -> Tensor:
    """(B, S), 1 where a row has a token → (B, 1, 1, S), to be added to scores."""
    return ((1.0 - mask.float()) * UNREAD)[:, None, None]
