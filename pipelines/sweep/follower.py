"""MLflow follows the trials' folders, in a thread of its own: no trial and no table waits for a server."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from textwrap import shorten

from cotd.progress import say
from cotd.storage.tracking_store import attempt
from cotd.tracking.runs import StudyTracker
from cotd.training.trial import Trial
from pipelines.sweep.plan import Plan

# A store that did not answer is asked again after so many seconds; each time twice as late, up to the second.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


class MlflowFollower:
    """Writes to MLflow what the folders of the trials named to it say. What a store does not take is kept and tried again.

    Attributes:
        behind: trial id → a trial whose folder says more than MLflow does.
    """

    def __init__(self, plan: Plan, tracker: StudyTracker):
        self.plan = plan
        self.tracker = tracker
        self.behind: dict[str, Trial] = {}
        self.opened: set[str] = set()
        self.ended: set[str] = set()
        self.away = False
        self._noted: Counter[str] = Counter()  # how often: news that comes while a trial is written is written again
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)

    def start(self) -> MlflowFollower:
        self._thread.start()
        return self

    def note(self, trial: Trial, ended: bool = False) -> None:
        """A trial has started, was scored, or (`ended`) will not go on: its run in MLflow is to follow. Returns at once."""
        with self._lock:
            self.behind[trial.id] = trial
            self._noted[trial.id] += 1
            if ended:
                self.ended.add(trial.id)
        self._news.set()

    def close(self, trials: Iterable[Trial], patience_seconds: float = 15.0) -> int:
        """Leaves no run of these trials open, and ends the thread.

        Returns:
            How many trials MLflow does not know all of, because it has not answered for `patience_seconds`.
        """
        with self._lock:
            for trial in trials:
                if trial.id not in self.ended:
                    self.behind[trial.id] = trial
                    self._noted[trial.id] += 1
            self._closing = True
        self._news.set()
        patience = time.monotonic() + patience_seconds
        left = len(self.behind)
        while self._thread.is_alive():
            self._thread.join(0.2)
            if len(self.behind) < left or not self.away:  # it answers: this ends by itself
                left, patience = len(self.behind), time.monotonic() + patience_seconds
            elif time.monotonic() > patience:
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
        """Writes what is behind, the oldest first; whether the store answered."""
        with self._lock:
            batch = [(trial, self._noted[trial.id]) for trial in self.behind.values()]
        for trial, noted in batch:
            problem = attempt(self._writer(trial))
            with self._lock:
                if problem:  # to the end: what one run refuses must not hold up the others
                    self.behind[trial.id] = self.behind.pop(trial.id)
                elif self._noted[trial.id] == noted:
                    del self.behind[trial.id]
            if problem:
                if not self.away:
                    say(
                        f"  MLflow does not answer ({shorten(problem, 120)}); trials go on, and their metrics are kept until it does"
                    )
                self.away = True
                return False
            if self.away:
                say("  MLflow answers again")
                self.away = False
        return True

    def _writer(self, trial: Trial) -> Callable[[], None]:
        """What brings a trial's run up to its folder."""
        folder = self.plan.folder(trial)

        def write() -> None:
            if trial.id in self.ended:
                self.tracker.sync_trial(trial, folder)
            elif self._closing:
                self.tracker.settle(trial, folder)
            else:
                if trial.id not in self.opened:
                    self.tracker.reopen(trial)
                    self.opened.add(trial.id)
                self.tracker.sync_curve(trial, folder)

        return write
