from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cotd.errors import CotdError
from cotd.study.config import StudyConfig, load_config
from cotd.study.trials import plan_trials
from pipelines.sweep.search import draw_settings, scheduler

SEARCH: dict[str, Any] = {
    "samples": 8,
    "space": {
        "learning_rate": {"loguniform": [1e-4, 1e-1]}, "dropout": {"uniform": [0.0, 0.5]}, "batch_size": {"choice": [4, 8]},
        "warmup_steps": {"uniform": [0, 30]},
    },
    "asha": {"grace_steps": 10, "reduction": 2},
}  # fmt: skip


def study(write_study: Callable[..., Path], *overrides: str, **search: Any) -> StudyConfig:
    return load_config(write_study(search=SEARCH | search, training={"steps": 40, "eval_every": 10}), list(overrides))


def test_samples_are_the_same_for_every_run_and_more_of_them_keep_the_first(write_study: Callable[..., Path]) -> None:
    config = study(write_study)
    assert config.search is not None
    drawn = draw_settings(config.search)
    assert drawn == draw_settings(config.search)
    more = study(write_study, "search.samples=12", "search.space.label_smoothing={uniform: [0, 0.1]}")
    assert more.search is not None
    assert [{k: s[k] for k in drawn[0]} for s in draw_settings(more.search)][:8] == drawn
    other = study(write_study, "search.seed=1")
    assert other.search is not None
    assert draw_settings(other.search) != drawn
    trials = plan_trials(config, {"tiny": "b"}, "r", None, settings=drawn)
    assert {t.id for t in trials} == {t.id for t in plan_trials(config, {"tiny": "b"}, "r", None, settings=drawn)}
    assert len({t.id for t in trials}) == 8


def test_samples_are_in_the_space(write_study: Callable[..., Path]) -> None:
    config = study(write_study, samples=60)
    assert config.search is not None
    drawn = draw_settings(config.search)
    for name, low, high in (("learning_rate", 1e-4, 1e-1), ("dropout", 0, 0.5), ("warmup_steps", 0, 30)):
        values = [s[name] for s in drawn]
        assert low <= min(values) < max(values) <= high
        assert len(set(values)) > 15
    assert {s["batch_size"] for s in drawn} == {4, 8}
    assert all(type(s["warmup_steps"]) is int for s in drawn)
    below = sum(s["learning_rate"] < 10**-2.5 for s in drawn)
    assert 15 <= below <= 45, "evenly in the logarithm"


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"space": {"learning_rat": {"uniform": [0, 1]}}}, "no training key 'learning_rat'. Did you mean 'learning_rate'?"),
        ({"space": {"steps": {"choice": [1, 2]}}}, "'steps' cannot vary: it is the budget"),
        ({"space": {"dropout": {"uniform": [0.0, 1.5]}}}, "dropout cannot be 1.5"),
        ({"space": {"dropout": {"uniform": [0.5, 0.1]}}}, "0.5 is not below 0.1"),
        ({"space": {"dropout": {"loguniform": [0.0, 0.1]}}}, "loguniform needs values above 0"),
        ({"space": {"dropout": {"uniform": [0, 0.1], "choice": [0]}}}, "needs one of uniform"),
        ({"space": {"schedule": {"uniform": [0, 1]}}}, "schedule is not numeric; use choice"),
        ({"space": {"schedule": {"choice": ["linear", "cosin"]}}}, "schedule cannot be 'cosin'"),
        ({"asha": {"grace_steps": 50}}, "grace_steps (50) is more than training.steps (40)"),
        ({"samples": 0}, "search.samples"),
    ],
)
def test_searches_that_cannot_be(write_study: Callable[..., Path], search: dict[str, Any], message: str) -> None:
    with pytest.raises(CotdError) as caught:
        study(write_study, **search)
    assert message in str(caught.value)


def test_a_search_is_of_one_student(write_study: Callable[..., Path]) -> None:
    with pytest.raises(CotdError, match="the grid has 2 combinations: name one method"):
        study(write_study, "grid.seed=[0, 1]")


def report(asha: Any, name: str, step: int, accuracy: float) -> str:
    trial = SimpleNamespace(trial_id=name)
    if name not in asha._trial_info:
        asha.on_trial_add(None, trial)
    return asha.on_trial_result(None, trial, {"step": step, "validation_accuracy": accuracy})


def test_asha_compares_with_the_samples_of_an_earlier_run(write_study: Callable[..., Path]) -> None:
    config = study(write_study)
    curve = [{"step": 10, "validation_accuracy": 0.8}, {"step": 20, "validation_accuracy": 0.9}]
    assert report(scheduler(config, []), "poor", 10, 0.6) == "CONTINUE", "there is nothing to compare it with"
    again = scheduler(config, [curve])
    assert report(again, "poor", 10, 0.6) == "STOP"
    assert report(again, "good", 10, 0.85) == "CONTINUE"
    assert report(again, "good", 20, 0.7) == "STOP"
    assert report(again, "last", 10, 0.85) == "CONTINUE"
    assert report(again, "last", 40, 0.1) == "CONTINUE", "trained to its end, it is scored on test"
    assert scheduler(study(write_study, "search.asha=null"), []) is None
