"""Trials that are killed and trained again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from cotd.training.folder import TrialFolder
from cotd.training.train import train_trial
from tests.cotd.training.helpers import (
    Trained,
    make_folder,
    make_trial,
    parameters,
    scripted_scores,
    timeless,
    train_killed_and_resumed,
)


@pytest.mark.parametrize("killed_at", [2, 6], ids=["before its first checkpoint", "after two checkpoints"])
@pytest.mark.thorough
def test_a_killed_trial_resumes_from_its_checkpoint_and_finishes(
    killed_at: int, trained: Trained, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    trial, _, result = trained
    folder = make_folder(tmp_path / "killed")
    resumed = train_killed_and_resumed(killed_at, trial, folder, examples, annotations)
    # The step it was killed at was scored before its checkpoint was written, and is trained again.
    assert resumed == list(range(killed_at, 9, 2))
    assert folder.done
    assert not folder.checkpoints.exists()
    assert [point["step"] for point in folder.curve()] == [2, 4, 6, 8]
    assert folder.result().keys() == result.keys()
    assert folder.result()["steps"] == 8


def test_a_resumed_trial_is_the_trial_that_was_never_stopped(
    trained: Trained, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    """Its id says what was trained on what, not whether a machine went away meanwhile. Step 6 is in the second epoch."""
    trial, whole, result = trained
    folder = make_folder(tmp_path / "killed")
    train_killed_and_resumed(6, trial, folder, examples, annotations)
    assert [*map(timeless, folder.curve())] == [*map(timeless, whole.curve())]
    assert timeless(folder.result()) == timeless(result)


def test_a_trial_resumed_in_another_folder_keeps_its_best_checkpoint(
    tiny_t5: Path, examples: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint names the best one by its path in the first folder, and nothing better follows."""
    trial, here = make_trial(tiny_t5, weight_average=0.9), make_folder(tmp_path / "here")
    with scripted_scores(examples, [12, 20, 16, 16, 16, 16]) as scored:
        with monkeypatch.context() as patch:
            patch.setattr("cotd.training.train.fit_temperature", lambda *_: pytest.fail("the machine goes away"))
            with pytest.raises(pytest.fail.Exception, match="goes away"):
                train_trial(trial, here, examples, None)
        here.path.rename(tmp_path / "there")
        there = TrialFolder(tmp_path / "there")
        assert train_trial(trial, there, examples, None)["best_step"] == 4
    kept = parameters(there)
    assert all(torch.equal(p, scored[1][name]) for name, p in kept.items())
