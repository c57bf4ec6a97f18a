"""What a person watches during a sweep: a live table on a terminal, lines in a log file."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from cotd.progress import console, say
from cotd.training.trial import Trial

MAX_ROWS = 12  # running trials in the table; a terminal has 24 lines


@dataclass
class Running:
    """A trial in a worker."""

    since: float
    step: int = 0
    score: float | None = None


class Board:
    """The state of a sweep, from what its callbacks report.

    Time left is estimated from the cost of trials (steps × batch × tokens × parameters), not their number: the largest go first.
    """

    def __init__(self, costs: dict[str, float], trials: list[Trial], best: tuple[float, str] | None = None):
        """
        Args:
            costs: trial id → relative cost. trials: those to train.
            best: (validation accuracy, title) of the best student so far.
        """
        self.trials = {t.id: t for t in trials}
        self.costs = {t.id: costs.get(t.id, 1.0) for t in trials}
        self.total_cost = sum(self.costs.values()) or 1.0
        self.running: dict[str, Running] = {}
        self.steps: dict[str, int] = {}  # trial id → its last scored step, of those that have not ended
        self.resumed: set[str] = set()  # the trials whose cost before their checkpoint is known, and that cost
        self.cost_before = 0.0
        self.counts = {"done": 0, "pruned": 0, "failed": 0, "elsewhere": 0}
        self.ended: set[str] = set()
        self.cost_ended = 0.0
        self.best = best
        self.started_at = time.monotonic()
        self.tenths_logged = 0
        self.live = Live(get_renderable=self.table, console=console, refresh_per_second=2) if sys.stderr.isatty() else None

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        else:
            say(f"  training {len(self.trials)} students")
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.live.stop()

    def start(self, trial: Trial) -> None:
        self.running[trial.id] = Running(time.monotonic(), self.steps.get(trial.id, 0))

    def score(self, trial: Trial, step: int, score: float | None) -> None:
        if trial.id not in self.resumed:
            self.resumed.add(trial.id)
            # A trial that resumes from a checkpoint scores the next evaluation step first.
            before = max(0, step - min(trial.training.eval_every, trial.training.steps))
            self.cost_before += self.costs[trial.id] * before / trial.training.steps
        row = self.running.setdefault(trial.id, Running(time.monotonic()))
        row.step, row.score = step, score if score is not None else row.score
        self.steps[trial.id] = max(step, self.steps.get(trial.id, 0))
        self.log_progress()

    def end(self, trial: Trial, state: str, message: str, validation: float | None = None) -> None:
        """A trial is `done`, `pruned`, `failed`, or trained `elsewhere`, by another sweep."""
        self.counts[state] += 1
        self.cost_ended += 0.0 if trial.id in self.ended else self.costs[trial.id]
        self.ended.add(trial.id)
        self.running.pop(trial.id, None)
        self.steps.pop(trial.id, None)
        if validation is not None and (self.best is None or validation > self.best[0]):
            self.best = (validation, trial.title)
        say(f"  {trial.title}: {message}")
        self.log_progress()

    def fraction_done(self) -> float:
        """The part of the total cost that is done or no longer needed, from 0 to 1."""
        done = self.cost_ended
        for trial_id, step in list(self.steps.items()):  # a list: the terminal is redrawn by another thread
            done += self.costs[trial_id] * min(1.0, step / self.trials[trial_id].training.steps)
        return min(1.0, done / self.total_cost)

    def seconds_left(self) -> float | None:
        """By the pace so far; None before anything was scored."""
        fraction = self.fraction_done()
        gained = fraction - self.cost_before / self.total_cost
        return (time.monotonic() - self.started_at) * (1 - fraction) / gained if gained > 0 else None

    def summary(self) -> str:
        """`3 done, 1 failed, 2 running, 10 waiting; best so far 84.1 % on validation (…); about 12 min left`."""
        waiting = len(self.trials) - len(self.ended) - len(self.running)
        counts = {**self.counts, "running": len(self.running), "waiting": waiting}
        parts = [", ".join(f"{number} {state}" for state, number in counts.items() if number)]
        if self.best:
            parts.append(f"best so far {self.best[0]:.1%} on validation ({self.best[1]})")
        if len(self.ended) < len(self.trials) and (left := self.seconds_left()) is not None:
            parts.append(f"about {format_time(left)} left")
        return "; ".join(parts)

    def log_progress(self) -> None:
        """Without a terminal: a line at each tenth."""
        tenths = int(self.fraction_done() * 10)
        if self.live is None and tenths > self.tenths_logged:
            self.tenths_logged = tenths
            say(f"  {self.fraction_done():.0%}: {self.summary()}")

    def table(self) -> Table:
        table = Table(box=None, pad_edge=False, caption=self.summary(), caption_justify="left", padding=(0, 2, 0, 2))
        for name in ("trial", "progress", "step", "validation", "time"):
            table.add_column(name, justify="left" if name in ("trial", "progress") else "right", no_wrap=name != "trial")
        for trial_id, row in list(self.running.items())[:MAX_ROWS]:
            trial = self.trials[trial_id]
            steps = trial.training.steps
            table.add_row(
                trial.title, ProgressBar(steps, row.step, width=20), f"{row.step:,}/{steps:,}",
                f"{row.score:.1%}" if row.score is not None else "", format_time(time.monotonic() - row.since),
            )  # fmt: skip
        return table


def format_time(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
