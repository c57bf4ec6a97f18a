"""Trials that two workers train together, on the real path: Ray Tune, Ray Train, training of a tiny random T5."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

from cotd.students.student import Student
from cotd.study.config import StudyConfig, load_config
from cotd.training.folder import TrialFolder
from cotd.training.train import train_trial
from cotd.training.trial import Trial
from pipelines.cluster.session import MARKER, marked_processes, ray_session
from pipelines.sweep.plan import plan_study
from pipelines.sweep.run import sweep
from pipelines.sweep.watch import TrialWatcher, failure_reason

TRAINING = {
    "optimizer": "adamw", "steps": 8, "batch_size": 7, "eval_every": 4, "dropout": 0.0, "learning_rate": 1e-3,
    "precision": "float32",
}  # fmt: skip
RESOURCES = {"cpus": 1, "sizes": {"tiny": {"workers": 2}}}


@pytest.fixture
def write(write_study: Callable[..., Path], tiny_t5: Path) -> Callable[..., StudyConfig]:
    def make(training: dict[str, Any], include: list[dict[str, Any]] | None = None) -> StudyConfig:
        grid = {"method": ["finetune"], "fraction": [1.0], "size": ["tiny"], "seed": [0], "include": include or []}
        sizes = {"tiny": str(tiny_t5), "single": str(tiny_t5)}
        return load_config(write_study(grid=grid, sizes=sizes, training={**TRAINING, **training}, resources=RESOURCES))

    return make


def workers() -> list[psutil.Process]:
    """The processes of this Ray that train."""
    training = []
    for process in marked_processes(os.environ.get(MARKER, "")):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                training.append(process)
    return training


def parameters(folder: TrialFolder) -> dict[str, torch.Tensor]:
    return dict(Student.load(folder.student, device="cpu").model.named_parameters())


def assert_trained_as_by_one(config: StudyConfig, trial: Trial, scratch: Path) -> None:
    """The student in the trial's folder is, within rounding, the one that this process trains."""
    scratch.mkdir()
    plan, alone = plan_study(config), TrialFolder(scratch)
    expected = train_trial(trial, alone, pd.read_parquet(plan.examples), None)
    result = plan.folder(trial).result()
    for name, value in parameters(plan.folder(trial)).items():
        torch.testing.assert_close(value, parameters(alone)[name], rtol=0, atol=1e-5)
    assert result["steps"] == expected["steps"]
    assert [result[s]["accuracy"] for s in ("validation", "test")] == [expected[s]["accuracy"] for s in ("validation", "test")]
    scores = [{k: p[k] for k in ("step", "validation_accuracy")} for p in plan.folder(trial).curve()]
    assert scores == [{k: p[k] for k in ("step", "validation_accuracy")} for p in alone.curve()]


@pytest.mark.slow
def test_two_workers_train_the_trial_that_one_would(write: Callable[..., StudyConfig], tmp_path: Path) -> None:
    config = write({})
    with ray_session(num_cpus=2):
        outcome = sweep(config)
    assert (outcome["trained"], outcome["failed"]) == (1, {})
    (trial,) = plan_study(config).trials
    assert_trained_as_by_one(config, trial, tmp_path / "alone")
    assert not (config.directory / "tune").exists(), "Ray's own state is removed"


class Spy:
    """Watches what Tune reports of the trials, and kills a worker of the first that is scored."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.killed = 0
        self.recovered: list[str] = []
        on_result, on_recover = TrialWatcher.on_trial_result, TrialWatcher.on_trial_recover

        def result(watcher: TrialWatcher, **kwargs: Any) -> None:
            on_result(watcher, **kwargs)
            if not self.killed and watcher.planned(kwargs["trial"])[0].size == "tiny":
                self.killed = workers()[-1].pid
                os.kill(self.killed, signal.SIGKILL)

        def recover(watcher: TrialWatcher, **kwargs: Any) -> None:
            self.recovered.append(failure_reason(kwargs["trial"], watcher.planned(kwargs["trial"])[1]))
            on_recover(watcher, **kwargs)

        patch.setattr(TrialWatcher, "on_trial_result", result)
        patch.setattr(TrialWatcher, "on_trial_recover", recover)


@pytest.mark.slow
def test_a_killed_worker_costs_the_work_since_the_last_checkpoint(
    write: Callable[..., StudyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a trial of another size, which one worker trains."""
    spy = Spy(monkeypatch)
    config = write({"steps": 300, "eval_every": 20}, include=[{"size": ["single"], "seed": [1]}])
    with ray_session(num_cpus=2):
        outcome = sweep(config)
        deadline = time.monotonic() + 10
        while workers() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert workers() == []
    assert (outcome["trained"], outcome["failed"]) == (2, {})
    assert len(spy.recovered) == 1
    assert "has died" in spy.recovered[0]
    for trial in plan_study(config).trials:
        folder = plan_study(config).folder(trial)
        assert [point["step"] for point in folder.curve()] == list(range(20, 301, 20))
        assert not folder.error.exists()
    written = plan_study(config).folder(next(t for t in plan_study(config).trials if t.size == "tiny")).metrics
    assert written.read_text().count('"step": 20,') == 1, "the next attempt resumed from a checkpoint"
