from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cotd.errors import CotdError
from cotd.evaluation.cascade import (
    EVERYTHING,
    POINTS,
    Point,
    cascade_predictions,
    choose_threshold,
    risk_coverage,
    threshold_for_accuracy,
    threshold_for_share,
)
from cotd.evaluation.metrics import score_predictions
from tests.tasks import QUIZ, SENTIMENT, SUMS, TICKETS

CONFIDENCE = [0.9, 0.6, 0.8, 0.6, 0.7]
CURVE = [Point(0.9, 0.2, 1.0), Point(0.8, 0.4, 1.0), Point(0.7, 0.6, 2 / 3), Point(0.6, 1.0, 0.6)]


def card(accuracy: float = 0.7, task: object = SENTIMENT, n: int = 5, **more: object) -> dict:
    return {"task": task.to_dict(), "metrics": {"validation": {"accuracy": accuracy, "n": n}}, "method": "distill", **more}


def test_a_curve_says_how_many_answers_are_at_least_so_sure_and_how_many_of_them_are_right() -> None:
    assert np.allclose(risk_coverage(CONFIDENCE, [True, True, True, False, False]), CURVE)


def test_a_curve_of_many_examples_has_a_point_for_each_percent() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 5000)
    curve = risk_coverage(confidence, rng.uniform(size=5000) < confidence)
    assert len(curve) == POINTS
    assert curve[-1].coverage == 1.0
    assert curve[-1].confidence == confidence.min()
    assert np.diff([p.coverage for p in curve]).max() == pytest.approx(0.01, abs=2e-4)
    for point in curve[::20]:
        assert point.coverage == (confidence >= point.confidence).mean()


def test_the_threshold_is_the_least_confidence_that_gives_the_accuracy() -> None:
    assert [threshold_for_accuracy(CURVE, a) for a in (0.6, 0.65, 0.9, 1.0)] == [0.6, 0.7, 0.8, 0.8]
    assert threshold_for_accuracy(CURVE[2:], 0.9) == EVERYTHING > 1.0


@pytest.mark.parametrize(("share", "threshold"), [(0.0, 0.6), (0.39, 0.6), (0.4, 0.7), (0.6, 0.8), (1.0, 0.9)])
def test_no_more_than_the_share_is_handed_on(share: float, threshold: float) -> None:
    assert threshold_for_share(CURVE, share) == threshold
    assert np.mean(np.array(CONFIDENCE) < threshold) <= share + 1e-9


def test_each_rule_chooses_from_the_cards() -> None:
    small, large = card(0.6, risk_coverage=[list(p) for p in CURVE]), card(0.9)
    rules = {"auto": 0.8, "accuracy=0.6": 0.6, "share=0.4": 0.7, "0.75": 0.75, ".5": 0.5, "1": 1.0}
    assert {rule: choose_threshold(rule, small, large) for rule in rules} == rules


@pytest.mark.parametrize(
    ("below", "small", "large", "problem"),
    [
        ("often", card(), card(), "below 'often' is not auto, accuracy=A"),
        ("1.5", card(), card(), "below '1.5' is not auto"),
        ("accuracy=85", card(), card(), "below 'accuracy=85' is not auto"),
        ("auto", card(), card(), "no risk-coverage curve"),
        ("auto", card(risk_coverage=CURVE), card(n=6), "validated on different examples"),
        ("0.8", card(task=SUMS), card(task=SUMS), "are free and have no confidence"),
        ("0.8", card(), card(task=TICKETS), "have different tasks: 'sentiment' .* and 'tickets'"),
        ("0.8", card(task=QUIZ), card(task=SUMS), "have different tasks"),
        ("0.8", card(), card(rationale_as_input=True), "reads the teacher's rationale"),
    ],
)
def test_what_cannot_be_a_cascade_is_refused_in_words(below: str, small: dict, large: dict, problem: str) -> None:
    with pytest.raises(CotdError, match=problem):
        choose_threshold(below, small, large)


def table(ids: list[str], gold: list[str], predicted: list[str], score: list[float]) -> pd.DataFrame:
    positive = [s if p == "positive" else 1 - s for p, s in zip(predicted, score, strict=True)]
    probabilities = {"probability_negative": [1 - p for p in positive], "probability_positive": positive}
    return pd.DataFrame({"example_id": ids, "gold": gold, "predicted": predicted, "score": score, **probabilities})


def test_a_cascade_has_the_larger_students_answers_where_the_small_one_is_unsure() -> None:
    gold = ["positive", "negative", "positive"]
    small = table(["a", "b", "c"], gold, ["positive", "positive", "negative"], [0.95, 0.6, 0.55])
    large = table(["c", "a", "b"], ["positive", "positive", "negative"], ["positive", "negative", "negative"], [0.9, 0.7, 0.8])
    both = cascade_predictions(small, large, 0.8)
    assert list(both["example_id"]) == ["a", "b", "c"]
    assert list(both["predicted"]) == gold
    assert list(both["answered_by"]) == ["student", "escalated", "escalated"]
    scores = score_predictions(both, SENTIMENT)
    assert (scores["accuracy"], scores["n"]) == (1.0, 3)
    assert list(cascade_predictions(small, large, 0.0)["predicted"]) == list(small["predicted"])
    with pytest.raises(CotdError, match="different examples"):
        cascade_predictions(small, large.head(2), 0.8)
