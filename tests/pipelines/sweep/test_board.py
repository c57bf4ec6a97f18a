from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cotd.study.config import load_config
from cotd.study.trials import plan_trials
from cotd.training.trial import Trial
from pipelines.sweep.board import Board, format_time


@pytest.fixture
def trials(write_study: Callable[..., Path]) -> list[Trial]:
    grid = {"method": ["finetune", "distill"], "fraction": [1.0], "size": ["tiny"], "seed": [0, 1]}
    config = load_config(write_study(grid=grid, training={"steps": 100, "eval_every": 10}))
    return plan_trials(config, {"tiny": "b"}, "r", "a")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"now": 0.0}
    monkeypatch.setattr("pipelines.sweep.board.time.monotonic", lambda: now["now"])
    return now


def test_time_left_goes_by_cost(trials: list[Trial], clock: dict[str, float]) -> None:
    large, small, *_ = trials
    board = Board({large.id: 9.0, small.id: 1.0}, [large, small])
    assert board.seconds_left() is None
    board.start(large)
    clock["now"] = 9.0
    board.score(large, 10, 0.6)
    assert board.seconds_left() == pytest.approx(91)
    clock["now"] = 90.0
    board.end(large, "done", "80 %", 0.8)
    assert board.seconds_left() == pytest.approx(10)
    assert board.summary() == f"1 done, 1 waiting; best so far 80.0% on validation ({large.title}); about 10 s left"


def test_a_resumed_trial_does_not_count_as_a_fast_one(trials: list[Trial], clock: dict[str, float]) -> None:
    board = Board({}, trials[:1])
    board.start(trials[0])
    clock["now"] = 10.0
    board.score(trials[0], 60, 0.5)  # from its checkpoint at 50
    assert board.seconds_left() == pytest.approx(40)


def test_trials_that_are_pruned_or_fail_have_no_time_left(trials: list[Trial], clock: dict[str, float]) -> None:
    board = Board({}, trials, best=(0.9, "an earlier one"))
    for trial in trials[:2]:
        board.start(trial)
        board.score(trial, 10, 0.7)
    clock["now"] = 5.0
    board.end(trials[0], "pruned", "given up at step 10")
    board.end(trials[1], "failed", "failed: a reason")
    assert board.fraction_done() == 0.5
    assert board.summary().startswith("1 pruned, 1 failed, 2 waiting; best so far 90.0% on validation (an earlier one)")


def test_the_table_shows_running_trials(trials: list[Trial], clock: dict[str, float]) -> None:
    board = Board({}, trials)
    board.start(trials[0])
    board.score(trials[0], 40, 0.7312)
    screen = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    screen.print(board.table())
    shown = screen.export_text()
    assert trials[0].title in shown
    assert "40/100" in shown
    assert "73.1%" in shown
    assert "1 running, 3 waiting" in " ".join(shown.split())


def test_without_a_terminal_there_is_a_line_at_each_tenth(trials: list[Trial], capfd: pytest.CaptureFixture[str]) -> None:
    with Board({}, trials[:1]) as board:
        board.start(trials[0])
        for step in range(10, 101, 5):
            board.score(trials[0], step, 0.7)
        board.end(trials[0], "done", "test accuracy 70 %", 0.7)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "  training 1 students"
    assert sum(line.lstrip().startswith(("10%", "50%", "100%")) for line in lines) == 3
    assert len(lines) == 1 + 10 + 1
    assert f"  {trials[0].title}: test accuracy 70 %" in lines


@pytest.mark.parametrize(("seconds", "shown"), [(5, "5 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_times_are_rounded(seconds: float, shown: str) -> None:
    assert format_time(seconds) == shown
