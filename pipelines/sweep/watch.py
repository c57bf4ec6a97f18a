"""What a sweep does when a trial starts, reports, ends or fails."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ray import tune

from cotd.progress import say
from cotd.storage.working_copy import copy_of, is_small
from cotd.training.folder import TrialFolder, describe_result
from cotd.training.trial import Trial
from pipelines.sweep.board import Board
from pipelines.sweep.follower import MlflowFollower
from pipelines.sweep.plan import Plan
from pipelines.sweep.search import METRIC
from pipelines.sweep.trial import ELSEWHERE


class TrialWatcher(tune.Callback):
    """Passes what Tune reports of its trials on to the board and to MLflow's follower. Lives in the driver alone.

    Attributes:
        elsewhere: the trials that another sweep of the study works on; it writes their runs.
    """

    def __init__(self, plan: Plan, pending: list[Trial], follower: MlflowFollower, board: Board):
        self.config = plan.config
        self.trials = {str(plan.folder(t).path): t for t in pending}
        self.follower = follower
        self.board = board
        self.elsewhere: list[Trial] = []

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks to restore an experiment, and a sweep is restored from the trials' folders."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        planned = self.trials[trial.config["folder"]]
        self.board.start(planned)
        if not self.config.remote:  # else a score tells that it is trained here
            self.follower.note(planned)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        if result.get(ELSEWHERE):
            return
        planned, _folder = self.planned(trial)
        self.board.score(planned, int(result["step"]), result.get(METRIC))
        self.follower.note(planned)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        planned, folder = self.planned(trial)
        say(f"  {planned.title}: failed, and is tried again from its last checkpoint: {failure_reason(trial, folder)}")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        if trial.last_result.get(ELSEWHERE):
            planned = self.trials[trial.config["folder"]]
            self.elsewhere.append(planned)
            self.board.end(planned, ELSEWHERE, "another sweep of the study trains it")
            return
        planned, folder = self.planned(trial)
        if folder.done:
            result = folder.result()
            self.board.end(planned, "done", describe_result(result), result["validation"]["accuracy"])
        else:  # ASHA has stopped it
            point = (folder.curve() or [{"step": 0}])[-1]
            folder.write_pruned(point)
            if self.config.remote:  # other sweeps of the study give it up, too
                copy_of(self.config.remote, self.config.directory).push(f"trials/{planned.id}")
            self.board.end(planned, "pruned", f"given up at step {point['step']:,}, validation {point.get(METRIC, 0):.1%}")
        self.follower.note(planned, ended=True)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        planned, folder = self.planned(trial)
        reason = failure_reason(trial, folder)
        if not folder.error.is_file():
            with contextlib.suppress(OSError):
                folder.error.write_text(reason + "\n", encoding="utf-8")
        self.board.end(planned, "failed", f"failed: {reason}")
        self.follower.note(planned, ended=True)

    def planned(self, trial: Any) -> tuple[Trial, TrialFolder]:
        """The study's trial that a trial of Tune's runs, and its folder, brought up to date from remote storage."""
        path = Path(trial.config["folder"])
        if self.config.remote:
            copy_of(self.config.remote, self.config.directory).pull(f"trials/{path.name}", is_small)
        return self.trials[str(path)], TrialFolder(path)


def failure_reason(trial: Any, folder: TrialFolder) -> str:
    """The last line of a trial's error: from its own traceback, or, where its worker died, from Ray's report."""
    if folder.error.is_file():
        return error_line(folder.error)
    try:
        report = Path(trial.error_file).read_text(encoding="utf-8").rpartition("Failure #")[2].strip().splitlines()[1:]
    except (OSError, TypeError):
        report = []
    lines = [line.strip() for line in report if line.strip()] or ["Ray does not say why"]
    return lines[-1] if any("Traceback" in line for line in lines) else f"its worker died: {lines[0]}"


def error_line(path: Path) -> str:
    """The last line of a trial's error file, or that it has none."""
    lines = path.read_text(encoding="utf-8").strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else "stopped before it was done"
