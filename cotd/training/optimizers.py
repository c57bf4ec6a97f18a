"""The optimisers that students are trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw

# The names of transformers' optimisers; `scaled_adamw` is defined here.
TRAINER_NAMES = {"adafactor": "adafactor", "adamw": "adamw_torch_fused", "scaled_adamw": "adamw_torch"}


def custom_optimizer(name: str, learning_rate: float, weight_decay: float, beta2: float) -> tuple[Any, dict[str, Any]] | None:
    """The class and arguments of an optimiser that transformers' Trainer does not have; None for one that it has."""
    arguments = {"lr": learning_rate, "weight_decay": weight_decay, "betas": (0.9, beta2)}
    return (ScaledAdamW, arguments) if name == "scaled_adamw" else None


class ScaledAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) with each matrix's step scaled by its root mean square, as in Adafactor
    (Shazeer and Stern 2018, section 8).

    T5 starts from weights of very different sizes: word embeddings from N(0, 1), query matrices a hundred times smaller.
    One step size for all is too large for some or too small for others. An `lr` of 0.02 changes each matrix by about 2 % of
    its size.

    Args:
        min_scale: the least root mean square, so that zeros can grow.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.02, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-8,
        weight_decay: float = 0.0, min_scale: float = 1e-3,
    ):  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "min_scale": min_scale}
        super().__init__(params, defaults)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As PyTorch's, but step counts move to the weights' device, too: the fused kernel needs them there."""
        super().load_state_dict(state_dict)
        for p, state in self.state.items():
            if "step" in state:
                state["step"] = state["step"].to(p.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure`, if given, computes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), device=p.device)
                    state |= {"mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                size = (p.norm() / p.numel() ** 0.5).clamp_min(group["min_scale"])
                # One pass over the weights. The rate stays a tensor: reading its value from a GPU would stall the processor.
                adamw(
                    [p], [p.grad], [state["mean"]], [state["square"]], [], [state["step"]], fused=True, amsgrad=False,
                    beta1=first, beta2=second, lr=group["lr"] * size, weight_decay=group["weight_decay"], eps=group["eps"],
                    maximize=False,
                )  # fmt: skip
        return loss
