"""How packed sequences, one after another without padding, become padded rows of like length where attention needs them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Scores of an attention head that a group has at least, if it can, and at most.
MIN_SCORES, MAX_SCORES = 2**14, 2**18
# Added to the scores of what is not to be attended to; finite in any number format.
MASK_VALUE = torch.finfo(torch.bfloat16).min


class Group(NamedTuple):
    """Sequences of like length that attention computes together, as rows of one width."""

    rows: int
    width: int
    tokens: int
    positions: Tensor | None  # (tokens,) of the tokens among rows × width; None if there is no padding
    mask: Tensor | None  # (B, 1, 1, W), added to scores: MASK_VALUE for padding, else 0; None if there is no padding


class Packing:
    """How packed sequences become padded rows, in groups of neighbours of like length.

    Args:
        lengths: (B,) tokens of each sequence, at least 1; the less neighbours differ, the less padding there is.
    """

    def __init__(self, lengths: Tensor):
        self.lengths = lengths
        # A GPU prefers a few large operations.
        self.group_rows = group_sizes(lengths.tolist()) if lengths.device.type == "cpu" else [len(lengths)]
        self.groups = [as_rows(part) for part in lengths.split(self.group_rows)]
        self.width = max(group.width for group in self.groups)

    def pad(self, packed: Tensor) -> list[Tensor]:
        """(N, d) → each group's (B, W, d), zeros for padding."""
        parts = packed.split([group.tokens for group in self.groups])
        return [pad_group(part, group) for part, group in zip(parts, self.groups, strict=True)]


def group_sizes(lengths: list[int]) -> list[int]:
    """How many neighbours each group has.

    A new group begins when more than a quarter of a row would be padding, unless the group has few scores. No group has many
    more scores than fit a processor's cache. The limits were chosen by reasoning, not by a search.
    """
    sizes: list[int] = []
    least = width = 0
    for length in lengths:
        least, width = min(least, length), max(width, length)
        scores = (sizes[-1] + 1) * width**2 if sizes else 0
        if sizes and (scores <= MIN_SCORES or (scores <= MAX_SCORES and 4 * least >= 3 * width)):
            sizes[-1] += 1
        else:
            sizes.append(1)
            least = width = length
    return sizes


def as_rows(lengths: Tensor) -> Group:
    """A single group of sequences of such lengths."""
    rows, width, tokens = len(lengths), int(lengths.max()), int(lengths.sum())
    if tokens == rows * width:
        return Group(rows, width, tokens, None, None)
    real = torch.arange(width, device=lengths.device) < lengths[:, None]  # (B, W)
    mask = torch.zeros_like(real, dtype=torch.float32).masked_fill_(~real, MASK_VALUE)
    return Group(rows, width, tokens, real.flatten().nonzero().squeeze(1), mask[:, None, None])


def pad_group(packed: Tensor, group: Group) -> Tensor:
    """(N, d) → (B, W, d)."""
    if group.positions is not None:
        packed = packed.new_zeros(group.rows * group.width, packed.shape[-1]).index_copy_(0, group.positions, packed)
    return packed.view(group.rows, group.width, -1)


def pack_group(padded: Tensor, group: Group) -> Tensor:
    """(B, W, d) → (N, d)."""
    packed = padded.reshape(group.rows * group.width, -1)
    return packed if group.positions is None else packed.index_select(0, group.positions)
