"""Sweeps on the real path: Ray Tune, real training of a tiny random T5, SQLite MLflow; workers and drivers that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import yaml

from cotd.errors import CotdError
from cotd.study.config import StudyConfig, load_config
from cotd.training.trial import Trial
from pipelines.cluster.session import ray_session
from pipelines.sweep.board import Board
from pipelines.sweep.plan import plan_study
from pipelines.sweep.run import explain_out_of_memory, sweep
from pipelines.sweep.watch import TrialWatcher
from tests.processes import marked

TRAINING = {"optimizer": "adamw", "steps": 40, "batch_size": 8, "eval_every": 4, "dropout": 0.0}
# Three of the five samples learn the task in 24 steps, and the last, which starts when they have, learns nothing.
SEARCH = {
    "samples": 5,
    "seed": 43,
    "space": {"learning_rate": {"loguniform": [1e-7, 3e-2]}},
    "asha": {"grace_steps": 24, "reduction": 2},
}


class Spy:
    """Watches what Tune reports of the trials, and kills the worker of the first that has scored twice."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.at_once = 0
        self.killed: str | None = None
        self.on_result, self.on_start = TrialWatcher.on_trial_result, Board.start
        patch.setattr(TrialWatcher, "on_trial_result", lambda *args, **kwargs: self.result(*args, **kwargs))
        patch.setattr(Board, "start", lambda board, trial: self.started(board, trial))

    def started(self, board: Board, trial: Trial) -> None:
        self.on_start(board, trial)
        self.at_once = max(self.at_once, len(board.running))

    def result(self, watcher: TrialWatcher, *, trial: Any, result: dict[str, Any], **more: Any) -> None:
        self.on_result(watcher, trial=trial, result=result, **more)
        if self.killed is None and result["step"] == 8:
            self.killed = Path(trial.config["folder"]).name
            os.kill(result["pid"], signal.SIGKILL)


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path, example_rows: pd.DataFrame
) -> tuple[StudyConfig, dict[str, Any], Spy, str]:
    """A search on one logical GPU, in which a worker is killed: its study, its outcome, and what was seen meanwhile."""
    folder = tmp_path_factory.mktemp("search")
    example_rows.to_csv(folder / "reviews.csv", index=False)
    study = {
        "name": "searched", "data": {"source": str(folder / "reviews.csv"), "columns": {"split": "split"}},
        "grid": {"method": ["finetune"], "fraction": [1.0], "size": ["tiny"], "seed": [0]}, "sizes": {"tiny": str(tiny_t5)},
        "training": TRAINING, "search": SEARCH, "resources": {"cpus": 0.25}, "storage": str(folder / "runs"),
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    config = load_config(folder / "study.yaml")
    with pytest.MonkeyPatch.context() as patch, ray_session(num_cpus=2, num_gpus=1):
        spy = Spy(patch)
        outcome = sweep(config)
    return config, outcome, spy, str(folder / "study.yaml")


Searched = tuple[StudyConfig, dict[str, Any], Spy, str]


@pytest.mark.slow
def test_four_trials_of_a_quarter_of_a_gpu_run_at_once(searched: Searched) -> None:
    assert searched[2].at_once == 4


@pytest.mark.slow
def test_a_killed_worker_costs_the_work_since_its_last_checkpoint(searched: Searched) -> None:
    config, outcome, spy, _ = searched
    assert spy.killed is not None
    assert outcome["failed"] == {}
    for metrics in (config.directory / "trials").glob("*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
        # It was killed as it reported step 8, when the checkpoint at 4 was there, and perhaps that at 8.
        again = steps.count(8) if metrics.parent.name == spy.killed else 1
        assert again <= 2
        assert steps.count(4) == 1
        assert len(steps) == len(set(steps)) + again - 1


@pytest.mark.slow
def test_a_search_gives_up_poor_samples_and_names_the_best(searched: Searched) -> None:
    config, outcome, _, _ = searched
    plan = plan_study(config)
    done = [t for t in plan.trials if plan.folder(t).done]
    pruned = [t for t in plan.trials if plan.folder(t).pruned]
    assert (len(done), len(pruned)) == (outcome["trained"], outcome["pruned"])
    assert len(done) + len(pruned) == outcome["trials"] == 5
    assert pruned
    assert plan.trials[-1] in pruned
    best = max(plan.folder(t).result()["validation"]["accuracy"] for t in done)
    assert outcome["best"]["validation_accuracy"] == best
    assert "learning_rate" in outcome["best"]["title"]
    for trial in pruned:
        assert not plan.folder(trial).checkpoints.exists()
        assert plan.folder(trial).curve()[-1]["step"] < TRAINING["steps"]


@pytest.mark.slow
def test_mlflow_has_each_sample_once_and_none_running(searched: Searched) -> None:
    import mlflow

    config = searched[0]
    client = mlflow.MlflowClient(config.tracking_uri(), config.tracking_uri())
    runs = client.search_runs([client.get_experiment_by_name("searched").experiment_id])
    trials = [r for r in runs if r.data.tags["cotd.kind"] == "trial"]
    assert {r.data.tags["cotd.trial_id"] for r in trials} == {t.id for t in plan_study(config).trials}
    assert len(trials) == 5
    assert {r.info.status for r in runs} == {"FINISHED"}
    for run in trials:
        curve = client.get_metric_history(run.info.run_id, "validation_accuracy")
        assert [m.step for m in curve] == list(range(4, int(curve[-1].step) + 1, 4))


@pytest.mark.slow
def test_a_finished_search_trains_nothing_again_and_a_longer_one_only_what_is_new(searched: Searched) -> None:
    config, outcome, _, path = searched
    plan = plan_study(config)
    assert plan.pending() == []
    again = sweep(config)  # needs no Ray
    assert (again["trained"], again["pruned"], again["best"]) == (0, 0, outcome["best"])
    more = plan_study(load_config(path, ["search.samples=7"]))
    assert len(more.pending()) == 2


def test_a_very_large_grid_needs_agreement(write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(
        write_study(grid={"method": ["finetune"], "fraction": [1.0], "size": ["tiny"], "seed": list(range(10_001))})
    )
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(CotdError, match=r"up to 10,001 trials\. Nobody is at a terminal .* --yes"):
        sweep(config)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(CotdError, match="not started"):
        sweep(config)
    assert not config.directory.exists()


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "COTD_TEST_MARK": uuid.uuid4().hex}


@pytest.mark.slow
def test_a_sweep_resumes_in_the_same_runs_after_its_driver_was_killed(
    write_study: Callable[..., Path], tiny_t5: Path, environment: dict[str, str]
) -> None:
    import mlflow

    grid = {"method": ["finetune"], "fraction": [0.5, 1.0], "size": ["tiny"], "seed": [0, 1, 2]}
    path = write_study(grid=grid, sizes={"tiny": str(tiny_t5)}, training=TRAINING)
    config = load_config(path)
    trials = config.directory / "trials"
    command = [sys.executable, "-m", "cotd.cli", "sweep", str(path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(trials.glob("*/result.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while marked(environment) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert marked(environment) == [], "Ray's processes end with their driver"
    before = {p: p.stat().st_mtime_ns for p in trials.glob("*/result.json")}
    assert 2 <= len(before) < 6
    client = mlflow.MlflowClient(config.tracking_uri(), config.tracking_uri())
    experiment = [client.get_experiment_by_name("small").experiment_id]
    known = {r.info.run_id for r in client.search_runs(experiment)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"6 trials, {6 - len(before)} trained now, 0 failed" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before
    runs = client.search_runs(experiment)
    assert known <= {r.info.run_id for r in runs}
    assert len([r for r in runs if r.data.tags["cotd.kind"] == "trial"]) == 6
    assert {r.info.status for r in runs} == {"FINISHED"}


def test_a_machine_that_ran_out_of_memory_is_named_with_what_to_do() -> None:
    advice = r"ran out of memory.*resources\.max_concurrent.*run the same command again"
    with pytest.raises(CotdError, match=advice), explain_out_of_memory():
        raise RuntimeError("Caught unexpected exception") from ray.exceptions.OutOfMemoryError("1 worker was killed")
    with pytest.raises(RuntimeError, match="another"), explain_out_of_memory():
        raise RuntimeError("another")
