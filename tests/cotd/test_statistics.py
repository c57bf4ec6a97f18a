from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.evaluation import score_predictions
from cotd.statistics import accuracy_interval, expected_calibration_error, mcnemar, seeds_interval


def test_wilson_interval_of_a_textbook_case() -> None:
    # 8 of 10, z = 1.959964: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert accuracy_interval(np.array([True] * 8 + [False] * 2)) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-5)


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_wilson_interval_holds_the_accuracy_and_stays_in_range(correct: list[bool]) -> None:
    accuracy, low, high = accuracy_interval(np.array(correct))
    assert 0 <= low <= accuracy + 1e-12
    assert accuracy - 1e-12 <= high <= 1
    assert high - low > 0


def test_one_seed_gives_the_wilson_interval() -> None:
    correct = np.array([[True] * 70 + [False] * 30])
    assert seeds_interval(correct) == accuracy_interval(correct[0])


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    rows = rng.random(500) < 0.8
    alike = np.stack([rows] * 5)
    apart = np.stack([rng.random(500) < p for p in (0.6, 0.7, 0.8, 0.9, 1.0)])
    mean, low, high = seeds_interval(alike)
    assert mean == rows.mean()
    # The same predictions five times are no better evidence than once.
    _, wilson_low, wilson_high = accuracy_interval(rows)
    assert high - low == pytest.approx(wilson_high - wilson_low, rel=0.15)
    _, low_apart, high_apart = seeds_interval(apart)
    assert high_apart - low_apart > 1.5 * (high - low)
    assert seeds_interval(apart) == seeds_interval(apart)


def test_mcnemar_by_hand() -> None:
    a = np.array([True] * 5 + [True] * 9 + [False] * 1)
    b = np.array([True] * 5 + [False] * 9 + [True] * 1)
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(a, a) == 1.0


def test_expected_calibration_error_by_hand() -> None:
    confidence = np.array([1.0, 0.95, 0.65, 0.65])
    correct = np.array([True, False, True, True])
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.5 * (0.975 - 0.5) + 0.5 * (1 - 0.65))


def test_metrics_of_a_small_table() -> None:
    table = pd.DataFrame(
        [("a", "positive", "positive", 0.9), ("b", "positive", "negative", 0.4), ("c", "negative", "negative", 0.3)],
        columns=["review_id", "gold", "predicted", "probability_positive"],
    )
    table["probability_negative"] = 1 - table["probability_positive"]
    metrics = score_predictions(table, "positive", teacher={"a": "negative", "b": "negative", "elsewhere": "positive"})
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["ci_low"] < 2 / 3 < metrics["ci_high"]
    assert metrics["macro_f1"] == pytest.approx(2 / 3)
    assert metrics["roc_auc"] == 1.0
    assert (metrics["teacher_agreement"], metrics["n_teacher"]) == (0.5, 2)
    one_class = score_predictions(table[table["gold"] == "positive"], "positive")
    assert "roc_auc" not in one_class
    assert one_class["n"] == 2
