"""What a sweep does when a trial reports, ends or fails."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ray import tune

from cotd.progress import say
from cotd.storage.working_copy import copy_of, is_small
from cotd.training.folder import TrialFolder
from cotd.training.trial import Trial
from cotd.utils.text import last_line
from pipelines.sweep.board import Board
from pipelines.sweep.follower import MlflowFollower
from pipelines.sweep.plan import Plan
from pipelines.sweep.search import METRIC


class TrialWatcher(tune.Callback):
    """Tells the board and MLflow's follower what Tune tells of the trials. Lives in the driver alone."""

    def __init__(self, plan: Plan, pending: list[Trial], follower: MlflowFollower, board: Board):
        self.trials = {str(plan.folder(t).path): t for t in pending}
        self.follower = follower
        self.board = board

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks to restore an experiment; ours is restored from the trials' folders."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        ours, _folder = self._of(trial)
        self.board.started(ours)
        self.follower.note(ours)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        ours, _folder = self._of(trial)
        self.board.scored(ours, int(result["step"]), result.get(METRIC))
        self.follower.note(ours)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        ours, folder = self._of(trial)
        say(f"  {ours.title}: failed, and is tried again from its last checkpoint: {self._why(trial, folder)}")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        ours, folder = self._of(trial)
        if folder.done:
            result = folder.result()
            self.board.ended_as(ours, "done", describe_result(result), result["validation"]["accuracy"])
        else:  # ASHA has stopped it
            point = (folder.curve() or [{"step": 0}])[-1]
            folder.write_pruned(point)
            self.board.ended_as(ours, "pruned", f"given up at step {point['step']:,}, validation {point.get(METRIC, 0):.1%}")
        self.follower.note(ours, ended=True)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        ours, folder = self._of(trial)
        why = self._why(trial, folder)
        if not folder.error.is_file():
            with contextlib.suppress(OSError):
                folder.error.write_text(why + "\n", encoding="utf-8")
        self.board.ended_as(ours, "failed", f"failed: {why}")
        self.follower.note(ours, ended=True)

    def _why(self, trial: Any, folder: TrialFolder) -> str:
        """The last line of a trial's error: its own, or, where its worker died, what Ray says of that."""
        if folder.error.is_file():
            return error_line(folder.error)
        try:
            told = Path(trial.error_file).read_text(encoding="utf-8").rpartition("Failure #")[2].strip().splitlines()[1:]
        except (OSError, TypeError):
            told = []
        lines = [line.strip() for line in told if line.strip()] or ["Ray does not say why"]
        return lines[-1] if any("Traceback" in line for line in lines) else f"its worker died: {lines[0]}"

    def _of(self, trial: Any) -> tuple[Trial, TrialFolder]:
        folder, config = trial.config["folder"], self.follower.tracker.config
        if config.remote:
            copy_of(config.remote, config.directory).pull(f"trials/{Path(folder).name}", is_small)
        return self.trials[folder], TrialFolder(Path(folder))


def describe_result(result: dict[str, Any]) -> str:
    test = result["test"]
    cut = f", {result['cut_targets']:,} of {result['train_pairs']:,} targets cut (training.max_target_tokens)"
    return (
        f"test accuracy {test['accuracy']:.1%} [{test['ci_low']:.1%}, {test['ci_high']:.1%}], "
        f"validation {result['validation']['accuracy']:.1%}, {result['seconds']:.0f} s"
        f"{cut if result['cut_targets'] else ''}"
    )


def error_line(path: Path) -> str:
    """The last line of a trial's error, or that there is none."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return last_line(text) or "stopped before it was done"
