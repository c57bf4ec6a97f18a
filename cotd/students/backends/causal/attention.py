"""Attention over packed trees of tokens (see `cotd.students.backends.causal.trees`), for any causal model of transformers.

All that is done token by token gets one long row without padding, and only attention lays trees of like length beside each
other. Results are those of each sequence alone. transformers lets a model's attention be replaced by a function; keyword
arguments of the model's `forward` reach it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cotd.students.backends.packing import MASK_VALUE, Packing, pack_group

NAME = "cotd_packed"


class Trees:
    """How packed tokens attend to each other.

    Args:
        lengths: (T,) tokens of each tree; the less neighbours differ, the less padding there is.
        branches: (N,) 0 for the common beginning of a tree, else the number of a continuation, from 1.
    """

    def __init__(self, lengths: Tensor, branches: Tensor):
        self.packing = Packing(lengths)
        self.masks = [tree_mask(rows[..., 0]) for rows in self.packing.pad(branches[:, None])]

    @property
    def outer_mask(self) -> Tensor:
        """A mask of four dimensions, which transformers passes on as it is, and nobody reads."""
        return self.masks[0][:1, :, :1, :1]

    def in_dtype(self, dtype: torch.dtype) -> list[Tensor]:
        """The masks in the number format of the scores they are added to."""
        if self.masks[0].dtype != dtype:
            self.masks = [mask.to(dtype) for mask in self.masks]
        return self.masks


def trees_of(part: dict[str, Any]) -> Trees | None:
    """How the tokens of what `pack_trees` gave attend to each other.

    None of one sequence to infer from: PyTorch's own attention takes a fifth off the time of a request of one text.
    """
    if not torch.is_grad_enabled() and len(part["lengths"]) == 1 and part["positions"][-1] + 1 == len(part["positions"]):
        return None
    return Trees(part["lengths"], part["branches"])


def tree_mask(branches: Tensor) -> Tensor:
    """(B, W) → (B, 1, W, W), added to scores: 0 where a token (row) attends to another (column), else MASK_VALUE."""
    width = branches.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=branches.device).tril_()
    seen = earlier & ((branches[:, None] == 0) | (branches[:, None] == branches[:, :, None]))
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, MASK_VALUE)[:, None]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    trees: Trees | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: of packed trees, or without them as PyTorch computes it.

    Args:
        query: (1, H, N, d). key, value: (1, K, N, d), each for H / K heads of the query.

    Returns:
        (1, N, H, d).
    """
    if trees is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    heads, size, groups = query.shape[1], query.shape[3], query.shape[1] // key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    rows = [trees.packing.pad(states[0].transpose(0, 1).flatten(1)) for states in (query, key, value)]
    outputs = []
    for group, mask, q, k, v in zip(trees.packing.groups, trees.in_dtype(query.dtype), *rows, strict=True):
        # Heads that share keys are one longer row of queries: (B, K, H / K · W, d)
        q = q.unflatten(-1, (-1, groups, size)).permute(0, 2, 3, 1, 4)
        k, v = (part.unflatten(-1, (-1, size)).transpose(1, 2) for part in (k, v))  # (B, K, W, d)
        if query.device.type == "cpu":
            # By hand: PyTorch's own backward pass takes 1.7 times as long for short rows in bfloat16.
            scores = (q.flatten(2, 3) @ k.transpose(2, 3)).unflatten(2, (groups, -1)).mul_(scale).add_(mask[:, :, None])
            weights = functional.dropout(scores.softmax(dim=-1), dropout, module.training)
            mixed = (weights.flatten(2, 3) @ v).unflatten(2, (groups, -1))
        else:
            k, v = (part[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for part in (k, v))
            mixed = functional.scaled_dot_product_attention(
                q.flatten(1, 2), k, v, mask, dropout if module.training else 0.0, scale=scale
            ).unflatten(1, (-1, groups))
        outputs.append(pack_group(mixed.permute(0, 3, 1, 2, 4).flatten(2), group))  # (B, K, H / K, W, d)
    return torch.cat(outputs).unflatten(-1, (heads, -1))[None], None


def install(model: Any) -> bool:
    """Has a model compute attention by `attend`; returns whether it can: not if it has another one than PyTorch's.

    Nothing of it is saved with the model.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation not in ("sdpa", NAME):
        return False
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME
    return True


def uninstall(model: Any) -> None:
    """Gives a model PyTorch's attention back."""
    model.config._attn_implementation = "sdpa"
