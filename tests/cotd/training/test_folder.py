from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from cotd.study.config import load_config
from cotd.study.trials import plan_trials
from cotd.training.folder import TrialFolder


def test_a_folder_gives_its_trial_back(write_study: Callable[..., Path], tmp_path: Path) -> None:
    config = load_config(write_study())
    (trial,) = plan_trials(config, {"tiny": "b"}, "r", None)
    folder = TrialFolder(tmp_path / "trials" / trial.id)
    folder.write_trial(trial, config.model_dump())
    assert folder.trial() == trial
    assert folder.trial().id == trial.id
    assert folder.config() == json.loads(config.model_dump_json())
    assert not folder.done
    folder.write_result({"test": {"accuracy": 0.5}})
    assert folder.done
    assert folder.result() == {"test": {"accuracy": 0.5}}
    assert sorted(p.name for p in folder.path.iterdir()) == ["result.json", "trial.json"]


def test_the_curve_survives_a_kill(tmp_path: Path) -> None:
    """A killed attempt leaves half a line, and its successor scores some steps again."""
    folder = TrialFolder(tmp_path)
    assert folder.curve() == []
    lines = ['{"step": 10, "validation_accuracy": 0.5}', '{"step": 20, "validation_accuracy": 0.6}', '{"step": 30, "valida']
    again = ['{"step": 20, "validation_accuracy": 0.7}', '{"step": 30, "validation_accuracy": 0.8}']
    folder.metrics.write_text("\n".join([*lines, *again]) + "\n")
    assert pd.DataFrame(folder.curve()).values.tolist() == [[10, 0.5], [20, 0.7], [30, 0.8]]
    folder.metrics.write_text("\n".join(lines))
    folder.add_point({"step": 40, "validation_accuracy": 0.9})
    assert [point["step"] for point in folder.curve()] == [10, 20, 40], "on a line of its own"


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step, state in ((2, '{"global_step": 2}'), (4, '{"global_st'), (6, "")):
        (checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        (checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (checkpoints / "checkpoint-8").mkdir(parents=True)
    assert TrialFolder(tmp_path).complete_checkpoints() == [2]
