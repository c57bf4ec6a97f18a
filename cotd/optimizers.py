"""The optimisers that students are trained with; those that PyTorch and transformers lack are written out here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw


def trainer_optimizer(name: str, learning_rate: float, weight_decay: float) -> tuple[str, Any]:
    """What transformers' Trainer takes for an optimiser: `TrainingArguments.optim` and `optimizer_cls_and_kwargs`.

    Args:
        name: "scaled_adamw", "scaled_muon", "adamw" or "adafactor".
    """
    if own := {"scaled_adamw": ScaledAdamW, "scaled_muon": ScaledMuon}.get(name):
        return "adamw_torch", (own, {"lr": learning_rate, "weight_decay": weight_decay})
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

    def takes(self, p: torch.Tensor) -> bool:
        """Whether these weights are stepped so."""
        return True

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
                if p.grad is None or not self.takes(p):
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


class ScaledMuon(ScaledAdamW):
    """Muon (Jordan et al. 2024) for the matrices inside layers, `ScaledAdamW` for embeddings, norms and heads.

    Muon's step is the momentum with all its singular values made alike. It is scaled as the others' are: a `lr` of 0.02
    changes each matrix by about 2 % of its root mean square. PyTorch's own Muon takes matrices alone, and moves all of them by
    the same amount, however small T5 has made some. Each step costs fifteen products of matrices for each of them.
    """

    MOMENTUM = 0.95
    LEAST = 64  # rows and columns of a matrix inside a layer; what relates few heads or labels to many units is none
    MOST_UNLIKE = 8  # times as many of one as of the other; embeddings have more

    def takes(self, p: torch.Tensor) -> bool:
        return not (p.ndim == 2 and min(p.shape) >= self.LEAST and max(p.shape) <= self.MOST_UNLIKE * min(p.shape))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            alike: dict[Any, list[torch.Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None and not self.takes(p):
                    alike.setdefault((p.shape, p.device), []).append(p)
            # Those of one shape together: a GPU takes longer to be asked than to multiply so small matrices.
            for matrices in alike.values():
                for p, direction in zip(matrices, orthogonalised(torch.stack([self.ahead(p) for p in matrices])), strict=True):
                    rate = group["lr"] * scale(p, group["min_scale"])
                    p.mul_(1 - rate * group["weight_decay"])
                    p.sub_(direction * (rate * max(p.shape) ** 0.5))
        return loss

    def ahead(self, p: torch.Tensor) -> torch.Tensor:
        """Nesterov's momentum, with this step's gradient in it."""
        assert p.grad is not None
        mean = self.state[p].setdefault("mean", torch.zeros_like(p))
        mean.lerp_(p.grad, 1 - self.MOMENTUM)
        return p.grad.lerp(mean, self.MOMENTUM)


def scale(p: torch.Tensor, least: float) -> torch.Tensor:
    """The root mean square of weights, or `least` where it is less."""
    return (p.norm() / p.numel() ** 0.5).clamp_min(least)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (…, m, n) with singular values near 1 and their own singular vectors, by five steps of Newton and Schulz's
    iteration.

    The coefficients are Jordan's (2024), which bring values from 0.001 on to between 0.7 and 1.2.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x
