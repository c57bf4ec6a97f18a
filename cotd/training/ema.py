"""An average of the weights that training goes through, in place of those it ends with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

FILE = "average.safetensors"


class WeightAverage:
    """The exponential moving average of a model's weights (Polyak and Juditsky 1992; Tarvainen and Valpola 2017).

    After step t the average moves by 1 − min(decay, (1 + t) / (10 + t)) of the way to the weights: at first by most of
    it, so that where training began is soon forgotten.

    PyTorch's AveragedModel keeps a whole second module, and its exponential average does not begin faster than it goes on.

    Args:
        decay: in (0, 1); 0.99 averages over the last hundred steps or so, and before step 890 over the last ninth of them.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.weights = dict(model.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights as they are after so many steps."""
        move = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.weights.values()], move)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        trained = {name: p.detach().clone() for name, p in self.weights.items()}
        self.put(self.average)
        try:
            yield
        finally:
            self.put(trained)

    @torch.no_grad()
    def put(self, tensors: dict[str, Any]) -> None:
        """Gives the model these weights."""
        for name, p in self.weights.items():
            p.copy_(tensors[name])

    def save(self, folder: str | Path) -> None:
        from safetensors.torch import save_file

        save_file({name: a.contiguous() for name, a in self.average.items()}, Path(folder) / FILE)

    def load(self, folder: str | Path) -> None:
        """Goes on from the average that `save` left in a folder."""
        from safetensors.torch import load_file

        stored = load_file(Path(folder) / FILE)
        for name, average in self.average.items():
            average.copy_(stored[name])
