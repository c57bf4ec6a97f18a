"""An MLflow server that is down or stops responding: trials never wait for it, and it gets what it missed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cotd.errors import CotdError
from cotd.study.config import StudyConfig, load_config
from cotd.study.trials import plan_trials
from cotd.tracking.runs import StudyTracker
from cotd.training.folder import TrialFolder
from cotd.training.trial import Trial
from pipelines.sweep.follower import MlflowFollower
from pipelines.sweep.plan import Plan
from tests.processes import free_port, running, wait_for


class Server:
    """A real `mlflow server` that can be stopped and started on the same database."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._running = contextlib.ExitStack()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination", f"{self.folder}/a"]
        log = self.folder / "server.log"
        # Without the seven processes for MLflow's own jobs, of which it has none here.
        self._running.enter_context(running(command, log, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"))
        wait_for(f"{self.url}/health", log)

    def stop(self) -> None:
        self._running.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.stop()


def plan_of(config: StudyConfig) -> tuple[Plan, Trial, TrialFolder]:
    plan = Plan(config, plan_trials(config, {"tiny": "b"}, "r", None), Path("unused"), None, None, {})
    trial = plan.trials[0]
    plan.folder(trial).write_trial(trial, config.model_dump())
    return plan, trial, plan.folder(trial)


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_is_down_at_the_start_is_one_quick_error(write_study: Callable[..., Path], server: Server) -> None:
    begun = time.monotonic()
    with pytest.raises(CotdError) as caught:
        StudyTracker(load_config(write_study(), [f"tracking.uri={server.url}"]))
    assert time.monotonic() - begun < 15
    assert len(caught.value.problems) == 1
    assert f"cannot use the MLflow tracking store '{server.url}'" in str(caught.value)
    assert "Start the server, or set tracking.uri" in str(caught.value)


@pytest.mark.slow
def test_what_a_server_missed_is_delivered_when_it_is_back(
    write_study: Callable[..., Path], server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    server.start()
    config = load_config(write_study(grid={"method": ["finetune"], "fraction": [1.0], "size": ["tiny"], "seed": [0, 1]}))
    config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": server.url})})
    plan, trial, folder = plan_of(config)
    tracker = StudyTracker(config)
    tracker.start_study()
    follower = MlflowFollower(plan, tracker).start()
    folder.add_point({"step": 1, "validation_accuracy": 0.5})
    follower.note(trial)
    wait_until(lambda: not follower.behind)

    def steps() -> list[int]:
        run = tracker.trial_run(trial)
        return [m.step for m in tracker.client.get_metric_history(run, "validation_accuracy")]

    assert steps() == [1]
    server.stop()
    for step in (2, 3):
        folder.add_point({"step": step, "validation_accuracy": 0.6})
        begun = time.monotonic()
        follower.note(trial)
        assert time.monotonic() - begun < 0.1, "a trial never waits for it"
    wait_until(lambda: follower.unreachable)
    assert trial.id in follower.behind
    server.start()
    wait_until(lambda: not follower.behind and not follower.unreachable)
    assert steps() == [1, 2, 3]
    # A server that does not come back delays the end only briefly, and what it lacks is reported.
    server.stop()
    folder.add_point({"step": 4, "validation_accuracy": 0.7})
    folder.write_pruned({"step": 4, "validation_accuracy": 0.7})
    follower.note(trial, ended=True)
    assert follower.close([trial], patience_seconds=2) == 1
    server.start()
    later = MlflowFollower(plan, StudyTracker(config)).start()
    later.note(trial, ended=True)  # as the next sweep does of all that has ended
    assert later.close([]) == 0
    assert steps() == [1, 2, 3, 4]
    assert tracker.client.get_run(tracker.trial_run(trial)).info.status == "FINISHED"
    capfd.readouterr()


def test_no_run_is_left_open(write_study: Callable[..., Path], make_store: Callable[[Path], str], tmp_path: Path) -> None:
    config = load_config(write_study(), [f"tracking.uri={make_store(tmp_path / 'mlflow.db')}"])
    plan, trial, folder = plan_of(config)
    tracker = StudyTracker(config)
    follower = MlflowFollower(plan, tracker).start()
    folder.add_point({"step": 1, "validation_accuracy": 0.5})
    follower.note(trial)
    wait_until(lambda: not follower.behind)
    wait_until(lambda: tracker.client.get_run(tracker.trial_run(trial)).info.status == "RUNNING")
    assert follower.close([trial]) == 0
    assert tracker.client.get_run(tracker.trial_run(trial)).info.status == "KILLED"


def test_any_error_is_outlived_and_said_of_which_trial_it_was(
    write_study: Callable[..., Path],
    make_store: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipelines.sweep.follower.FIRST_PAUSE", 0.05)
    config = load_config(write_study(), [f"tracking.uri={make_store(tmp_path / 'mlflow.db')}"])
    plan, trial, folder = plan_of(config)
    tracker = StudyTracker(config)
    failures = iter([KeyError("no bucket of that name"), RuntimeError()])
    sync = tracker.sync_curve

    def failing(*arguments: Any) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure
        sync(*arguments)

    monkeypatch.setattr(tracker, "sync_curve", failing)
    follower = MlflowFollower(plan, tracker).start()
    folder.add_point({"step": 1, "validation_accuracy": 0.5})
    follower.note(trial)
    wait_until(lambda: not follower.behind)
    history = tracker.client.get_metric_history(tracker.trial_run(trial), "validation_accuracy")
    assert [metric.step for metric in history] == [1]
    follower.close([trial])
    assert f"does not take the run of {trial.title} (KeyError: 'no bucket of that name')" in " ".join(
        capfd.readouterr().err.split()
    )
