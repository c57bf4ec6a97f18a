from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.evaluation.metrics import score_predictions
from cotd.evaluation.statistics import (
    accuracy_interval,
    detectable_difference,
    expected_calibration_error,
    group_codes,
    holm,
    mcnemar,
    over_seeds,
    percentiles,
    resampled_accuracies,
    sign_flip_test,
)
from tests.tasks import SENTIMENT


def test_wilson_interval_of_a_textbook_case() -> None:
    # 8 of 10, z = 1.959964: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert accuracy_interval(np.array([True] * 8 + [False] * 2)) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-5)


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_wilson_interval_holds_the_accuracy_and_stays_in_range(correct: list[bool]) -> None:
    accuracy, low, high = accuracy_interval(np.array(correct))
    assert 0 <= low <= accuracy + 1e-12
    assert accuracy - 1e-12 <= high <= 1
    assert high - low > 0


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    rows = rng.random(500) < 0.8
    alike = np.stack([rows] * 5)
    apart = np.stack([rng.random(500) < p for p in (0.6, 0.7, 0.8, 0.9, 1.0)])
    low, high = percentiles(over_seeds(resampled_accuracies(alike)))
    # The same predictions five times are no better evidence than once.
    _, wilson_low, wilson_high = accuracy_interval(rows)
    assert high - low == pytest.approx(wilson_high - wilson_low, rel=0.15)
    low_apart, high_apart = percentiles(over_seeds(resampled_accuracies(apart)))
    assert high_apart - low_apart > 1.5 * (high - low)
    assert percentiles(over_seeds(resampled_accuracies(apart))) == (low_apart, high_apart)


def alike_within_groups(rng: np.random.Generator, groups: np.ndarray, p: float = 0.8) -> np.ndarray:
    """Rows right or wrong with their whole group, but for a tenth of them."""
    of_group = rng.random(groups.max() + 1) < p
    return np.where(rng.random(len(groups)) < 0.9, of_group[groups], rng.random(len(groups)) < p)


def test_rows_of_a_group_that_are_alike_widen_every_interval() -> None:
    groups = np.repeat(np.arange(50), 10)
    correct = alike_within_groups(np.random.default_rng(0), groups)
    widths = []
    for some in (None, groups):
        _, low, high = accuracy_interval(correct, groups=some)
        widths.append([high - low, np.ptp(percentiles(resampled_accuracies(correct[None], groups=some)[:, 0]))])
    (wilson, drawn), (grouped_wilson, grouped_drawn) = widths
    assert grouped_wilson > 2 * wilson
    assert grouped_drawn > 2 * drawn
    assert grouped_wilson == pytest.approx(grouped_drawn, rel=0.15), "the two ways agree"


def test_groups_that_tell_nothing_change_little_and_few_groups_count_as_few_rows() -> None:
    rng = np.random.default_rng(1)
    rows, groups = rng.random(1000) < 0.8, np.repeat(np.arange(200), 5)
    assert np.ptp(accuracy_interval(rows, groups=groups)[1:]) == pytest.approx(np.ptp(accuracy_interval(rows)[1:]), rel=0.1)
    three = np.repeat(np.arange(3), [300, 300, 400])
    low, high = accuracy_interval(rows, groups=three)[1:]
    assert high - low > 0.5
    assert 0 < accuracy_interval(np.ones(1000, bool), groups=groups)[1] < accuracy_interval(np.ones(1000, bool))[1]


def test_the_interval_over_groups_holds_the_truth_nineteen_times_in_twenty() -> None:
    held = {"groups": 0, "rows": 0}
    for seed in range(200):
        groups = np.repeat(np.arange(60), 5)
        correct = alike_within_groups(np.random.default_rng(seed), groups)
        for name, some in (("groups", groups), ("rows", None)):
            _, low, high = accuracy_interval(correct, groups=some)
            held[name] += low <= 0.8 <= high
    assert held["groups"] >= 180
    assert held["rows"] < 160, "as if rows were independent it is far too narrow"


def test_rows_without_a_group_are_groups_of_their_own() -> None:
    codes = group_codes(["a", None, "b", "a", float("nan")])
    assert codes is not None
    assert codes[0] == codes[3]
    assert sorted(codes) == [0, 0, 1, 2, 3]
    assert group_codes(["a", "b", None]) is None
    assert group_codes(None) is None


def test_signs_are_flipped_by_group() -> None:
    groups = np.repeat(np.arange(5), 20)
    (p,) = sign_flip_test(np.ones((1, 100)), draws=4000, groups=groups)
    assert p == pytest.approx(2 / 2**5, abs=0.02), "five signs, of which two ways are as far from zero"


def test_mcnemar_by_hand() -> None:
    a = np.array([True] * 5 + [True] * 9 + [False] * 1)
    b = np.array([True] * 5 + [False] * 9 + [True] * 1)
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(a, a) == 1.0


def test_resampled_accuracies_vary_as_accuracies_do_and_together() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(400) < 0.8
    drawn = resampled_accuracies(np.stack([one, one, ~one]), draws=4000)
    assert drawn.shape == (4000, 3)
    assert drawn[:, 0].mean() == pytest.approx(one.mean(), abs=0.002)
    assert drawn[:, 0].std() == pytest.approx(np.sqrt(one.mean() * (1 - one.mean()) / 400), rel=0.05)
    assert (drawn[:, 0] == drawn[:, 1]).all(), "the same rows are drawn for all"
    assert drawn[:, 0] + drawn[:, 2] == pytest.approx(1.0)


def test_seeds_are_drawn_with_replacement() -> None:
    drawn = over_seeds(np.tile([0.0, 1.0], (4000, 1)))
    assert [np.mean(drawn == v) for v in (0.0, 0.5, 1.0)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=9))
def test_flipping_signs_agrees_with_counting_all_of_them(differences: list[int]) -> None:
    values = np.array(differences)
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(values))).reshape(len(values), -1)
    exact = np.mean(np.abs(values @ signs) >= abs(values.sum()))
    (p,) = sign_flip_test(values[None], draws=4000)
    assert p == pytest.approx(exact, abs=0.04)


def test_flipping_the_signs_of_one_seed_is_mcnemars_test() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random((2, 500)) < [[0.8], [0.72]]
    (p,) = sign_flip_test((a.astype(int) - b)[None], draws=20_000)
    assert p == pytest.approx(mcnemar(a, b), abs=0.01)


def test_no_p_value_is_zero_and_alike_methods_have_one() -> None:
    p = sign_flip_test(np.stack([np.ones(300), np.zeros(300)]), draws=999)
    assert p == pytest.approx([0.001, 1.0])


def test_holm_of_a_textbook_case() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert len(holm(np.array([]))) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_is_between_no_correction_and_bonferronis_and_keeps_the_order(p_values: list[float]) -> None:
    p = np.array(p_values)
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, p * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    rows, disagreement = 1000, 0.1
    difference = detectable_difference(disagreement, rows)
    # Of the rows where they differ, A is right in this many, and each other row is right, or wrong, for both.
    rng = np.random.default_rng(3)
    p_a, p_b = (disagreement + difference) / 2, (disagreement - difference) / 2
    counts = rng.multinomial(rows, [p_a, p_b, 1 - disagreement], size=2000)[:, :2]
    # McNemar's statistic without continuity correction, which the formula is about.
    found = (counts[:, 0] - counts[:, 1]) ** 2 / counts.sum(axis=1) > 3.841
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    assert detectable_difference(disagreement, rows, alpha=0.001) > difference
    assert detectable_difference(disagreement, 4 * rows) == pytest.approx(difference / 2, rel=0.02)
    assert detectable_difference(0.0, rows) == 0.0
    assert detectable_difference(0.25, 2) == 0.5, "no more than their disagreement allows"


def test_expected_calibration_error_by_hand() -> None:
    confidence = np.array([1.0, 0.95, 0.65, 0.65])
    correct = np.array([True, False, True, True])
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.5 * (0.975 - 0.5) + 0.5 * (1 - 0.65))


def test_metrics_of_a_small_table() -> None:
    table = pd.DataFrame(
        [("a", "positive", "positive", 0.9), ("b", "positive", "negative", 0.4), ("c", "negative", "negative", 0.3)],
        columns=["example_id", "gold", "predicted", "probability_positive"],
    )
    table["probability_negative"] = 1 - table["probability_positive"]
    table["score"] = table[["probability_positive", "probability_negative"]].max(axis=1)
    metrics = score_predictions(table, SENTIMENT, teacher={"a": "negative", "b": "negative", "elsewhere": "positive"})
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["ci_low"] < 2 / 3 < metrics["ci_high"]
    assert metrics["macro_f1"] == pytest.approx(2 / 3)
    assert metrics["roc_auc"] == 1.0
    assert (metrics["teacher_agreement"], metrics["n_teacher"]) == (0.5, 2)
    one_class = score_predictions(table[table["gold"] == "positive"], SENTIMENT)
    assert "roc_auc" not in one_class
    assert one_class["n"] == 2
