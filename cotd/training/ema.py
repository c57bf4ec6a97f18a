"""The exponential moving average of a student's weights, which is scored and kept in place of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback

FILE = "average.pt"


class WeightAverage(TrainerCallback):
    """Averages a model's weights after each step (Polyak and Juditsky 1992; Tarvainen and Valpola 2017).

    After step t the average moves by 1 − min(decay, (1 + t) / (10 + t)) of the way to the weights: at first by most of it,
    so that the starting point is soon forgotten.

    Args:
        decay: in (0, 1); 0.99 averages over about the last hundred steps, and before step 890 over the last ninth of them.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        def move(averages: list[torch.Tensor], weights: list[torch.Tensor], step: torch.Tensor) -> None:
            torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + int(step)) / (10 + int(step))))

        self.averaged = AveragedModel(model, multi_avg_fn=move)
        self.averaged.update_parameters(model)  # the first call copies: from here on `n_averaged` counts steps from 1

    @property
    def model(self) -> Any:
        """The model with the averaged weights."""
        return self.averaged.module

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by the Trainer after each step."""
        self.averaged.update_parameters(model)

    def save(self, folder: str | Path) -> None:
        """Writes the average to a checkpoint."""
        torch.save(self.averaged.state_dict(), Path(folder) / FILE)

    def load(self, folder: str | Path) -> None:
        """Continues from the average in a checkpoint."""
        self.averaged.load_state_dict(torch.load(Path(folder) / FILE, weights_only=True))
