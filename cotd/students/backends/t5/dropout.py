"""Dropout with masks of random bits.

Hand-written as it measures 1.8 times as fast as PyTorch's on a processor, where that is a fifth of a small T5's step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 2**16  # a rate is rounded to 1 / LEVELS


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, rate: float) -> Tensor:
        # 64 random bits decide about four elements.
        bits = torch.empty(-(-hidden.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        threshold = round(rate * LEVELS) - LEVELS // 2
        # As numbers: multiplying by booleans takes PyTorch four times as long.
        kept = (bits[: hidden.numel()] >= threshold).view(hidden.shape).view(torch.uint8)
        context.save_for_backward(kept)
        context.scale = 1 / (1 - rate)
        return (hidden * kept).mul_(context.scale)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = context.saved_tensors
        return (gradients[0] * kept).mul_(context.scale), None


def dropout(hidden: Tensor, rate: float, training: bool) -> Tensor:
    """`torch.nn.functional.dropout`: each element is zero with probability `rate`, else divided by 1 - `rate`."""
    if not training or rate == 0:
        return hidden
    if hidden.device.type != "cpu":
        return functional.dropout(hidden, rate)
    return _Dropped.apply(hidden.contiguous(), rate)


def set_dropout(model: Any, rate: float) -> None:
    """Sets the rate of every dropout in a model, whatever it was pretrained with."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "dropout", None), float):  # attention layers have the rate as a number
            module.dropout = rate
