from __future__ import annotations

import numpy as np
import pytest

from cotd.evaluation.comparisons import Comparison, compare, draws_for
from cotd.evaluation.statistics import mcnemar


def students(*accuracies: float, rows: int = 600, apart: float = 0.1) -> np.ndarray:
    """Rows right, of shape (students, rows): the easier ones for all, blurred for each by its own chance."""
    rng = np.random.default_rng(0)
    hardness = rng.random(rows)
    blurred = np.argsort(np.argsort(hardness + apart * rng.normal(size=(len(accuracies), rows)), axis=1), axis=1)
    return blurred < np.array(accuracies)[:, None] * rows


def test_a_difference_over_seeds() -> None:
    correct = students(0.80, 0.82, 0.81, 0.70, 0.71)
    better, same = compare(correct, [([0, 1, 2], [3, 4]), ([0], [0])])
    assert better.test == "permutation"
    assert better.difference == pytest.approx(correct[:3].mean() - correct[3:].mean())
    assert 0 < better.low < better.difference < better.high
    assert better.verdict == "holds"
    assert better.p_holm == pytest.approx(2 * better.p_value)
    assert 0 < better.detectable < better.detectable_holm < better.difference
    assert (same.difference, same.p_value, same.verdict) == (0.0, 1.0, "not shown")
    (turned,) = compare(correct, [([3, 4], [0, 1, 2])])
    assert turned.verdict == "opposite"
    assert turned.difference == pytest.approx(-better.difference)


def test_single_seeds_have_mcnemars_p_value() -> None:
    correct = students(0.8, 0.75)
    (c,) = compare(correct, [([0], [1])])
    assert (c.test, c.p_value, c.p_holm) == ("McNemar", mcnemar(*correct), mcnemar(*correct))


def test_rows_in_groups_are_compared_by_group() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 20)
    better = rng.random(30) < 0.2  # groups where the first is right and the second wrong, all rows of them
    correct = np.stack([np.ones(600, bool), ~better[groups]])
    (by_row,), (by_group,) = compare(correct, [([0], [1])]), compare(correct, [([0], [1])], groups)
    assert (by_row.test, by_group.test) == ("McNemar", "permutation")
    assert by_group.difference == pytest.approx(by_row.difference)
    assert by_group.p_value > 1000 * by_row.p_value
    assert by_group.high - by_group.low > 2 * (by_row.high - by_row.low)
    assert by_group.detectable > 2 * by_row.detectable


def test_a_lucky_seed_makes_no_claim() -> None:
    """The mean is better on these rows beyond chance, but two of three trainings are not."""
    correct = students(0.70, 0.70, 0.85, 0.70, 0.70, 0.70, apart=0.02)
    (c,) = compare(correct, [([0, 1, 2], [3, 4, 5])])
    assert c.p_holm < 0.05
    assert c.low < 0 < c.difference
    assert c.verdict == "not shown"


def test_without_a_true_difference_few_claims_are_made() -> None:
    """Twenty studies of six comparisons each, all of equals: a family of tests errs in one of twenty."""
    wrong = 0
    for study in range(20):
        rng = np.random.default_rng(study)
        correct = rng.random((8, 300)) < 0.8
        pairs = [([2 * i, 2 * i + 1], [2 * j, 2 * j + 1]) for i in range(4) for j in range(i)]
        wrong += any(c.verdict != "not shown" for c in compare(correct, pairs))
    assert wrong <= 3


def test_there_are_draws_enough_for_every_correction() -> None:
    for comparisons in (1, 50, 1000):
        assert comparisons / (draws_for(comparisons) + 1) < 0.05


def test_nothing_to_compare() -> None:
    assert compare(students(0.8), []) == []


def test_a_verdict_needs_both_the_test_and_the_interval() -> None:
    def verdict(p: float, low: float, high: float) -> str:
        return Comparison(0.0, low, high, "permutation", p, p, 0.02, 0.03).verdict

    assert verdict(0.01, 0.01, 0.05) == "holds"
    assert verdict(0.01, -0.05, -0.01) == "opposite"
    assert verdict(0.01, -0.01, 0.05) == verdict(0.06, 0.01, 0.05) == "not shown"
