"""Intervals and tests for accuracies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

# Bootstrap samples of an interval.
DRAWS = 2000
# With fewer groups of rows than this, their variance is not measured but taken to be the largest.
FEW_GROUPS = 20
# Draws held in memory at once: with 25,000 test rows, 50 MB.
CHUNK = 250


def accuracy_interval(
    correct: np.ndarray, confidence: float = 0.95, groups: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Accuracy and its Wilson score interval (Wilson 1927) over test rows.

    Args:
        correct: booleans, one a row; at least one.
        groups: see `group_codes`. With groups the interval is that of the effective number of rows.

    Returns:
        (accuracy, low, high), each in [0, 1]. The interval is about the sampling of rows, not of seeds.
    """
    from scipy.stats import norm

    accuracy = float(np.mean(correct))
    n = len(correct) if groups is None else effective_rows(correct, groups)
    z2 = float(norm.ppf((1 + confidence) / 2)) ** 2
    centre, half = (accuracy + z2 / (2 * n)), np.sqrt(z2 * (accuracy * (1 - accuracy) / n + z2 / (4 * n**2)))
    low, high = (float(np.clip((centre + side * half) / (1 + z2 / n), 0, 1)) for side in (-1, 1))
    return accuracy, low, high


def effective_rows(correct: np.ndarray, groups: np.ndarray) -> float:
    """How many independent rows would tell as much about the accuracy (Kish 1965; for Wilson's interval Dean and Pagano 2015).

    Rows over their design effect: the variance of the accuracy over groups by that over independent rows. If it cannot be
    measured, as all rows are right or wrong, or groups are fewer than FEW_GROUPS, a group counts as one row.
    """
    n, sizes = len(correct), np.bincount(groups).astype(float)
    fewest = n**2 / (sizes**2).sum()
    p, count = float(np.mean(correct)), len(sizes)
    if p in (0.0, 1.0) or count < FEW_GROUPS:
        return float(fewest)
    residuals = np.bincount(groups, weights=correct - p)
    variance = count / (count - 1) * float((residuals**2).sum()) / n**2
    return float(np.clip(p * (1 - p) / max(variance, 1e-12), fewest, n))


def accuracy_metrics(correct: np.ndarray, groups: np.ndarray | None = None) -> dict[str, float]:
    """`accuracy` with its Wilson interval, `ci_low` and `ci_high`, and the number of rows, `n`; `n_groups` if rows have groups."""
    interval = dict(zip(("accuracy", "ci_low", "ci_high"), accuracy_interval(correct, groups=groups), strict=True))
    return interval | {"n": len(correct)} | ({} if groups is None else {"n_groups": int(groups.max()) + 1})


def group_codes(groups: Iterable[Any] | None) -> np.ndarray | None:
    """(rows,) numbers of the rows' groups, from 0: rows of one group (a film, a product) are alike, and tell less than others.

    Args:
        groups: the group of each row; a row without one (None, NaN) is a group of its own.

    Returns:
        None if there are no groups, or each has one row.
    """
    import pandas as pd

    if groups is None:
        return None
    codes, names = pd.factorize(np.array(list(groups), dtype=object))
    alone = codes < 0
    codes[alone] = len(names) + np.arange(alone.sum())
    return None if len(np.unique(codes)) == len(codes) else codes.astype(np.int64)


def resampled_accuracies(correct: np.ndarray, draws: int = DRAWS, groups: np.ndarray | None = None) -> np.ndarray:
    """Each student's accuracy on bootstrap samples of the test rows, the same samples for every student.

    Drawing rows for all students at once, and seeds independently of rows (`over_seeds`), is the pigeonhole bootstrap of a
    table of rows × seeds (Owen 2007): both are samples, of possible examples and of possible trainings.

    Args:
        correct: booleans of shape (students, rows), at least one row.
        groups: see `group_codes`. Groups are then drawn in place of rows, each with all its rows (Davison and Hinkley 1997,
            section 3.8).

    Returns:
        Accuracies of shape (draws, students).
    """
    rng = np.random.default_rng(0)
    values = by_group(correct.T, groups)  # (groups, students)
    sizes = by_group(np.ones((correct.shape[1], 1)), groups)
    units = len(values)
    parts = []
    for start in range(0, draws, CHUNK):
        drawn = rng.integers(units, size=(min(CHUNK, draws - start), units))
        counts = np.stack([np.bincount(d, minlength=units) for d in drawn]).astype(np.float32)  # how often each is drawn
        parts.append((counts @ values).astype(np.float64) / (counts @ sizes))  # integers below 2^24: exact in float32
    return np.concatenate(parts)


def by_group(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """The sums over each group's rows, (groups, columns) float32; of rows without groups, the rows."""
    if groups is None:
        return values.astype(np.float32)
    sums = np.zeros((int(groups.max()) + 1, values.shape[1]), dtype=np.float32)
    np.add.at(sums, groups, values.astype(np.float32))
    return sums


def over_seeds(accuracies: np.ndarray, seed: int = 1) -> np.ndarray:
    """The mean over seeds of each draw, the seeds drawn with replacement.

    Args:
        accuracies: the columns of `resampled_accuracies` that are one method's seeds, of shape (draws, seeds).
        seed: of the drawing; different for two methods that are compared, so that their seeds are drawn independently.

    Returns:
        Shape (draws,).
    """
    draws, seeds = accuracies.shape
    if seeds == 1:
        return accuracies[:, 0]
    chosen = np.random.default_rng(seed).integers(seeds, size=(draws, seeds))
    return np.take_along_axis(accuracies, chosen, axis=1).mean(axis=1)


def percentiles(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The interval that holds the middle `confidence` of the values."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> float:
    """Two-sided p-value of the exact McNemar test (McNemar 1947) that two classifiers err equally often.

    Args:
        correct_a, correct_b: booleans on the same rows. If they never differ the p-value is 1.
    """
    from scipy.stats import binomtest

    only_a = int(np.sum(correct_a & ~correct_b))
    only_b = int(np.sum(~correct_a & correct_b))
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b).pvalue)


def sign_flip_test(differences: np.ndarray, draws: int = 10_000, groups: np.ndarray | None = None) -> np.ndarray:
    """Two-sided p-values of paired permutation tests that the mean difference is zero.

    If two methods are alike, each row's difference could as well have had the other sign: the p-value is the fraction of random
    signs, the observed ones included, whose mean is at least as far from zero (Fisher 1935; Yeh 2000 for comparing systems on
    one test set; Phipson and Smyth 2010 for including the observed ones, so that no p-value is zero). It is about the sampling
    of rows, with the students as they were trained.

    Args:
        differences: integers of shape (comparisons, rows): for each row, by how many seeds more the first method was right;
            if numbers of seeds differ, scaled to be integers. All comparisons see the same signs.
        draws: random signs to draw; the smallest possible p-value is 1 / (draws + 1).
        groups: see `group_codes`. The rows of a group then have one sign.

    Returns:
        Shape (comparisons,).
    """
    rng = np.random.default_rng(0)
    values = by_group(np.asarray(differences).T, groups)  # (groups, comparisons); sums below 2^24 are exact
    observed = np.abs(values.sum(axis=0))
    as_far = np.zeros(values.shape[1], dtype=np.int64)
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        bits = np.unpackbits(rng.integers(256, size=(size, -(-len(values) // 8)), dtype=np.uint8), axis=1, count=len(values))
        signs = 2 * bits.astype(np.float32) - 1
        as_far += (np.abs(signs @ values) >= observed).sum(axis=0)
    return (1 + as_far) / (1 + draws)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values corrected for their number, so that they bound the chance of any false claim among them (Holm 1979).

    The smallest is multiplied by the number of tests, the next by one less, …; never decreasing, at most 1. Shape (tests,).
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted


def detectable_difference(disagreement: float, rows: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest difference in accuracy that a paired two-sided test on so many rows finds with the given power.

    Solves Connor's (1987) sample size for McNemar's test, √n δ = z_(1-α/2) √ψ + z_power √(ψ - δ²), for δ.

    Args:
        disagreement: ψ, the mean square of the rows' differences: with one seed each, the fraction of rows that only one of
            the two gets right; with several, less, as seeds' errors average out. Of rows in groups, the sum of the squares of
            the groups' differences, by rows.

    Returns:
        δ in [0, 1], at most √ψ: more is not possible with this disagreement.
    """
    from scipy.stats import norm

    z_alpha, z_power = norm.ppf(1 - alpha / 2), norm.ppf(power)
    # The greater root of δ²(n + z_power²) - 2 δ √n z_alpha √ψ + ψ (z_alpha² - z_power²) = 0.
    inside = max(0.0, rows + z_power**2 - z_alpha**2)
    root = (np.sqrt(rows) * z_alpha + z_power * np.sqrt(inside)) / (rows + z_power**2)
    return float(np.sqrt(disagreement) * min(1.0, root))


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by size (Guo et al. 2017)."""
    edges = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[edges == b].mean() - correct[edges == b].mean()) * np.mean(edges == b) for b in set(edges)]
    return float(sum(gaps))
