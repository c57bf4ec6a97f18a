"""Trials whose weights are averaged."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from cotd.students.base_models import load_base
from cotd.training.train import train_trial
from tests.cotd.training.helpers import (
    make_folder,
    make_trial,
    parameters,
    scripted_scores,
    train_killed_and_resumed,
)


@pytest.mark.integration
def test_what_is_scored_and_kept_may_be_the_average_of_the_weights(
    tiny_t5: Path, examples: pd.DataFrame, tmp_path: Path
) -> None:
    settings = {"schedule": "constant_with_warmup"}

    def weights_after(steps: int) -> dict[str, torch.Tensor]:
        folder = make_folder(tmp_path / str(steps))
        train_trial(make_trial(tiny_t5, steps=steps, eval_every=99, **settings), folder, examples, None)
        return parameters(folder)

    def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return all(torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-6) for name in b)

    average = dict(load_base(str(tiny_t5))[0].named_parameters())
    averages, trained = [], []
    for step, decay in ((1, 2 / 11), (2, 3 / 12), (3, 0.3), (4, 0.3)):
        trained.append(weights_after(step))
        average = {name: (decay * p + (1 - decay) * trained[-1][name]).detach() for name, p in average.items()}
        averages.append(average)
    folder = make_folder(tmp_path / "averaged")
    with scripted_scores(examples, [12, 20, 16, 16]) as scored:  # the second is the best
        result = train_trial(make_trial(tiny_t5, weight_average=0.3, **settings), folder, examples, None)
    assert result["best_step"] == 4
    assert close(scored[0], averages[1])
    assert close(scored[1], averages[3])
    assert close(parameters(folder), averages[3])
    assert not close(trained[3], averages[3])


@pytest.mark.integration
def test_a_resumed_average_is_the_one_that_was_never_stopped(tiny_t5: Path, examples: pd.DataFrame, tmp_path: Path) -> None:
    trial = make_trial(tiny_t5, weight_average=0.9)
    whole, killed = make_folder(tmp_path / "whole"), make_folder(tmp_path / "killed")
    for folder in (whole, killed):
        with scripted_scores(examples, range(12, 24)):  # each is better than the one before, so that the last is kept
            if folder is whole:
                train_trial(trial, whole, examples, None)
            else:
                assert train_killed_and_resumed(6, trial, killed, examples, None) == [6, 8]
        assert folder.result()["best_step"] == 8
    assert all(torch.equal(a, parameters(killed)[name]) for name, a in parameters(whole).items())
