from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cotd.errors import CotdError
from cotd.evaluation.cascade import (
    EVERYTHING,
    POINTS,
    Operating,
    Point,
    cascade_predictions,
    choose_threshold,
    operating_points,
    risk_coverage,
    threshold_auto,
    threshold_for_accuracy,
    threshold_for_share,
    threshold_within,
)
from cotd.evaluation.metrics import score_predictions
from cotd.students.validated import Validated, write_validated
from cotd.tasks.base import Task
from cotd.utils.files import write_json
from tests.tasks import QUIZ, SENTIMENT, SUMS, TICKETS

CONFIDENCE = [0.9, 0.6, 0.8, 0.6, 0.7]
CURVE = [Point(0.9, 0.2, 1.0), Point(0.8, 0.4, 1.0), Point(0.7, 0.6, 2 / 3), Point(0.6, 1.0, 0.6)]


def validated(confidence: list[float], right: list[bool], ids: list[int] | None = None) -> Validated:
    return Validated(np.array(ids or range(len(right)), dtype=np.uint64), np.array(confidence), np.array(right))


# The small student has two of the answers wrong that it is least sure of, and the large one one of those that it is surest of.
SMALL = validated(CONFIDENCE, RIGHT := [True, True, True, False, False])
LARGE = validated([0.9] * 5, [True, True, False, True, True])


@pytest.fixture
def student(tmp_path: Path) -> Callable[..., Path]:
    """Makes a student's folder without a model, in which its card and its answers can be read."""

    def make(answers: Validated | None = SMALL, task: Task = SENTIMENT, **card: Any) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "model.safetensors").touch()
        write_json(folder / "cotd.json", {"task": task.to_dict(), "method": "distill", **card})
        write_validated(answers, folder)
        return folder

    return make


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


def test_operating_points_are_of_the_examples_that_both_were_validated_on() -> None:
    rng = np.random.default_rng(0)
    first, second = (
        validated(rng.uniform(0.5, 1, 40).round(1).tolist(), rng.uniform(size=40) < 0.7, rng.permutation(50)[:40].tolist())
        for _ in range(2)
    )
    shared = sorted(set(first.ids) & set(second.ids))
    rows = [
        (first.confidence[first.ids == i][0], first.right[first.ids == i][0], second.right[second.ids == i][0]) for i in shared
    ]
    points = operating_points(first, second)
    assert len(points) == len({confidence for confidence, *_ in rows}) + 1
    for threshold, share, accuracy in points:
        assert share == pytest.approx(np.mean([confidence < threshold for confidence, *_ in rows]))
        answers = [large if confidence < threshold else small for confidence, small, large in rows]
        assert accuracy == pytest.approx(np.mean(answers))
    assert (points[0].share, points[-1].share) == (1.0, pytest.approx(0.0))


def test_the_two_are_together_as_accurate_as_asked_with_as_little_as_possible_handed_on() -> None:
    points = operating_points(SMALL, LARGE)
    assert [(p.share, p.accuracy) for p in points] == [
        pytest.approx(p) for p in [(1, 0.8), (0.8, 0.8), (0.6, 1.0), (0.4, 0.8), (0, 0.6)]
    ]
    assert [threshold_within(points, within) for within in (0.0, 0.1, 0.2, 1.0)] == [0.7, 0.7, 0.6, 0.6]
    alike = [Operating(EVERYTHING, 1.0, 0.9), Operating(0.9, 0.8, 0.895), Operating(0.6, 0.3, 0.8), Operating(0.5, 0.0, 0.7)]
    assert (threshold_within(alike, 0.01), threshold_auto(alike)) == (0.9, 0.6), "auto hands on four in ten at most"
    assert threshold_auto([*alike[:2], Operating(0.6, 0.3, 0.891), alike[-1]]) == 0.6
    lucky = [*alike[:2], Operating(0.8, 0.4, 0.88), Operating(0.7, 0.3, 0.891), alike[-1]]
    assert threshold_within(lucky, 0.01) == 0.9, "what the two reach again further down is luck"
    assert threshold_auto([*alike[:2], Operating(0.5, 0.0, 0.9)]) == 0.5, "the small one is as good alone"


def test_each_rule_chooses_from_what_the_students_answered_on_validation(student: Callable[..., Path]) -> None:
    small, large = student(), student(LARGE)
    rules = {"auto": 0.7, "within=0.2": 0.6, "accuracy=0.6": 0.6, "share=0.6": 0.8, "0.75": 0.75, ".5": 0.5, "1": 1.0}
    assert {rule: choose_threshold(rule, small, large) for rule in rules} == rules


@pytest.mark.parametrize(
    ("below", "small", "large", "problem"),
    [
        ("often", {}, {}, "below 'often' is not auto, within=W, accuracy=A"),
        ("1.5", {}, {}, "below '1.5' is not auto"),
        ("accuracy=85", {}, {}, "below 'accuracy=85' is not auto"),
        ("share=0.2", {"answers": None}, {}, "came without its answers to validation examples"),
        ("auto", {}, {"answers": None}, "validated on different examples.*share=0.2"),
        ("auto", {}, {"answers": validated(CONFIDENCE, RIGHT, [4, 5, 6, 7, 8])}, "validated on different examples"),
        ("0.8", {"task": SUMS}, {"task": SUMS}, "are free and have no confidence"),
        ("0.8", {}, {"task": TICKETS}, "have different tasks: 'sentiment' .* and 'tickets'"),
        ("0.8", {"task": QUIZ}, {"task": SUMS}, "have different tasks"),
        ("0.8", {}, {"rationale_as_input": True}, "reads the teacher's rationale"),
    ],
)
def test_what_cannot_be_a_cascade_is_refused_in_words(
    student: Callable[..., Path], below: str, small: dict, large: dict, problem: str
) -> None:
    with pytest.raises(CotdError, match=problem):
        choose_threshold(below, student(**small), student(**large))


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
