"""MLflow follows the trials' folders, in a thread of its own: no trial and no table waits for a server."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from textwrap import shorten

from cotd.progress import say
from cotd.storage.tracking_store import attempt
from cotd.tracking.runs import StudyTracker
from cotd.training.trial import Trial
from pipelines.sweep.plan import Plan

# Seconds before a store that does not respond is tried again: twice as many each time, up to the second.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


class MlflowFollower:
    """Writes to MLflow what the folders of noted trials contain. What a store does not take is kept and tried again.

    Attributes:
        behind: trial id → a trial whose folder has more than MLflow.
        unreachable: whether the last write failed.
    """

    def __init__(self, plan: Plan, tracker: StudyTracker):
        self.plan = plan
        self.tracker = tracker
        self.behind: dict[str, Trial] = {}
        self.opened: set[str] = set()
        self.ended: set[str] = set()
        self.unreachable = False
        self._noted: Counter[str] = Counter()  # trial id → notes: one that comes while its trial is written is written again
        self._lock = threading.RLock()
        self._news = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)

    def start(self) -> MlflowFollower:
        self._thread.start()
        return self

    def note(self, trial: Trial, ended: bool = False) -> None:
        """A trial has started, was scored or has `ended`: its run in MLflow is to be updated. Returns at once."""
        with self._lock:
            self.behind[trial.id] = trial
            self._noted[trial.id] += 1
            if ended:
                self.ended.add(trial.id)
        self._news.set()

    def close(self, trials: Iterable[Trial], patience_seconds: float = 15.0) -> int:
        """Leaves no run of these trials open, and ends the thread.

        Returns:
            How many trials MLflow does not know all of, because it has not responded for `patience_seconds`.
        """
        with self._lock:
            for trial in trials:
                if trial.id not in self.ended:
                    self.note(trial)
            self._closing = True
        self._news.set()
        deadline = time.monotonic() + patience_seconds
        left = len(self.behind)
        while self._thread.is_alive():
            self._thread.join(0.2)
            if len(self.behind) < left or not self.unreachable:  # it responds: the thread will end by itself
                left, deadline = len(self.behind), time.monotonic() + patience_seconds
            elif time.monotonic() > deadline:
                break
        return len(self.behind)

    def _follow(self) -> None:
        pause = FIRST_PAUSE
        while True:
            if not self.behind and not self._closing:
                self._news.wait()
            self._news.clear()
            if not self.behind and self._closing:
                return
            if self._deliver():
                pause = FIRST_PAUSE
            else:
                self._news.wait(FIRST_PAUSE if self._closing else pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _deliver(self) -> bool:
        """Writes what is behind, the oldest first; returns whether the store responded."""
        with self._lock:
            batch = [(trial, self._noted[trial.id]) for trial in self.behind.values()]
        for trial, noted in batch:
            problem = attempt(lambda trial=trial: self._write(trial))  # type: ignore[misc]
            with self._lock:
                if problem:  # to the end: a run that is refused must not hold up the others
                    self.behind[trial.id] = self.behind.pop(trial.id)
                elif self._noted[trial.id] == noted:
                    del self.behind[trial.id]
            if problem:
                if not self.unreachable:
                    problem = shorten(problem, 120)
                    say(f"  MLflow does not take the run of {trial.title} ({problem}); trials continue, and it is tried again")
                self.unreachable = True
                return False
            if self.unreachable:
                say("  MLflow takes runs again")
                self.unreachable = False
        return True

    def _write(self, trial: Trial) -> None:
        """Updates a trial's run from its folder."""
        folder = self.plan.folder(trial)
        if trial.id in self.ended:
            self.tracker.sync_trial(trial, folder)
        elif self._closing:
            self.tracker.settle(trial, folder)
        else:
            if trial.id not in self.opened:
                self.tracker.reopen(trial)
                self.opened.add(trial.id)
            self.tracker.sync_curve(trial, folder)
