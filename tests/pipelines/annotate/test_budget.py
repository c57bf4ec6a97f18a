"""What a run may cost: agreed to before, and kept to."""

from __future__ import annotations

import os
from typing import Any

import pytest

from cotd.errors import CotdError
from cotd.study.config import StudyConfig
from cotd.teachers.config import BudgetConfig
from pipelines.annotate.run import annotate
from tests.pipelines.annotate.fault_server import MakeStudy, Provider, number_of

PRICES = ["teacher.budget.input_price=10", "teacher.budget.output_price=100"]


def test_nobody_to_agree_to_the_price(study: MakeStudy, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    config = study(*PRICES)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    with pytest.raises(CotdError, match=r"60 requests to make \(0 completions are in the store\).*run again with --yes"):
        annotate(config)
    assert not provider[0].bodies
    assert not config.directory.exists()


@pytest.mark.parametrize(("answer", "agreed"), [("y", True), ("", False)])
def test_the_price_is_asked_for_at_a_terminal(
    study: MakeStudy, provider: Provider, monkeypatch: pytest.MonkeyPatch, answer: str, agreed: bool
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    if agreed:
        assert annotate(study(*PRICES))["spent"]["cost"] == pytest.approx((60 * 50 * 10 + 60 * 10 * 100) / 1e6)
    else:
        with pytest.raises(CotdError, match="not started"):
            annotate(study(*PRICES))
    assert bool(provider[0].bodies) == agreed


@pytest.mark.parametrize("limit", ["max_cost=0.045", "max_tokens=2000"])
def test_a_budget_stops_the_run_and_keeps_what_is_done(study: MakeStudy, provider: Provider, limit: str) -> None:
    config = study(*PRICES, f"teacher.budget.{limit}")
    summary = annotate(config, yes=True)
    asked = len(provider[0].bodies)
    assert 12 < asked < 60
    spent = summary["spent"]
    assert spent["limit_reached"].startswith(limit.partition("=")[0])
    if limit.startswith("max_cost"):
        assert 0.03 < spent["cost"] <= 0.045
    else:
        assert 1500 < spent["prompt_tokens"] + spent["output_tokens"] <= 2000
    assert summary["teacher"]["n"] == 12
    (reason, count), = summary["annotations"]["quarantined"].items()  # fmt: skip
    assert reason.startswith(f"not asked: teacher.budget.{limit.partition('=')[0]}")
    assert count == 60 - asked
    whole = annotate(study(), yes=True)
    assert whole["annotations"]["usable"] == 48
    assert len(provider[0].bodies) == 60


@pytest.mark.parametrize("fault", ["prose", "malformed", "hang"])
def test_a_budget_holds_where_answers_are_paid_and_useless(study: MakeStudy, provider: Provider, fault: str) -> None:
    """Every second training example's answers are no use; what the server has written stays within the limit."""
    server = provider[0]
    server.fault = lambda prompt, tries: fault if int(number_of(prompt)) % 2 and int(number_of(prompt)) < 24 else None
    quick = ["teacher.api.timeout_seconds=0.7"] if fault == "hang" else []
    summary = annotate(study("teacher.budget.max_tokens=6000", *quick), yes=True)
    spent = summary["spent"]["prompt_tokens"] + summary["spent"]["output_tokens"]
    assert len(server.bodies) * 60 <= spent <= 6000
    if fault != "hang":  # whose tokens count at once as the most that they may be
        assert max(server.tries.values()) > 1
    if fault == "prose":  # the server says how much each took
        assert spent == len(server.bodies) * 60


def test_a_budget_too_small_for_the_test_examples(study: MakeStudy, provider: Provider) -> None:
    with pytest.raises(CotdError, match=r"teacher\.budget\.max_tokens 20 was reached before the teacher was measured"):
        annotate(study("teacher.budget.max_tokens=20"), yes=True)
    assert not provider[0].bodies


def test_a_budget_holds_for_an_engine_too(config: StudyConfig, teacher_double: Any) -> None:
    limited = config.model_copy(update={"teacher": config.teacher.model_copy(update={"budget": BudgetConfig(max_tokens=600)})})
    summary = annotate(limited, teacher_double.complete)
    assert summary["spent"]["prompt_tokens"] + summary["spent"]["output_tokens"] <= 600
    assert 0 < summary["annotations"]["usable"] < 48
    assert annotate(config, teacher_double.complete)["annotations"]["usable"] == 48
    assert len(teacher_double.asked) == 84
