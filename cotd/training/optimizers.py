"""The optimisers that students are trained with; those that PyTorch and transformers lack are written out here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw


def trainer_optimizer(name: str, learning_rate: float, weight_decay: float) -> tuple[str, Any]:
    """What transformers' Trainer takes for an optimiser: `TrainingArguments.optim` and `optimizer_cls_and_kwargs`.

    Args:
        name: "scaled_adamw", "adamw" or "adafactor".
    """
    if name == "scaled_adamw":
        return "adamw_torch", (ScaledAdamW, {"lr": learning_rate, "weight_decay": weight_decay})
    return {"adafactor": "adafactor", "adamw": "adamw_torch_fused"}[name], None


class ScaledAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) with each matrix's step scaled by its root mean square, as in Adafactor
    (Shazeer and Stern 2018, section 8).

    T5 starts from weights of very different sizes: word embeddings from N(0, 1), query matrices a hundred times smaller.
    One step size for all is too large for the one or too small for the other. A `lr` of 0.02 changes each matrix by about
    2 % of its size.

    Args:
        min_scale: what the root mean square counts as where it is less, so that zeros can grow.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.02, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-8,
        weight_decay: float = 0.0, min_scale: float = 1e-3,
    ):  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "min_scale": min_scale}
        super().__init__(params, defaults)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As PyTorch's, which leaves the counts of steps on the processor unless told that an optimiser is fused."""
        super().load_state_dict(state_dict)
        for p, state in self.state.items():
            if "step" in state:
                state["step"] = state["step"].to(p.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure`, if given, is called for the loss, which is returned."""
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
                size = scale(p, group["min_scale"])
                # In one pass over the weights. The rate is a tensor: asking a GPU for its value would make the processor wait.
                adamw(
                    [p], [p.grad], [state["mean"]], [state["square"]], [], [state["step"]], fused=True, amsgrad=False,
                    beta1=first, beta2=second, lr=group["lr"] * size, weight_decay=group["weight_decay"], eps=group["eps"],
                    maximize=False,
                )  # fmt: skip
        return loss


def scale(p: torch.Tensor, least: float) -> torch.Tensor:
    """The root mean square of weights, or `least` where it is less."""
    return (p.norm() / p.numel() ** 0.5).clamp_min(least)
