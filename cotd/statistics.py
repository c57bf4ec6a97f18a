"""Intervals and tests for accuracies."""

from __future__ import annotations

import numpy as np


def share(fraction: float) -> str:
    """ "10 %" for 0.1, "0.1 %" for 0.001."""
    return f"{100 * fraction:.4g} %"


def accuracy_interval(correct: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Accuracy and its Wilson score interval (Wilson 1927) over test rows.

    Args:
        correct: booleans, one a row; at least one.

    Returns:
        (accuracy, low, high), each in [0, 1]. The interval speaks of the rows' sampling, not of the seed's.
    """
    from scipy.stats import binomtest

    k, n = int(np.sum(correct)), len(correct)
    interval = binomtest(k, n).proportion_ci(confidence, method="wilson")
    return k / n, float(interval.low), float(interval.high)


def seeds_interval(correct: np.ndarray, confidence: float = 0.95, draws: int = 2000) -> tuple[float, float, float]:
    """Mean accuracy of several seeds, with an interval that bootstraps rows and seeds (percentiles).

    Args:
        correct: booleans of shape (seeds, rows), all on the same rows. One seed gives the Wilson interval.
    """
    if len(correct) == 1:
        return accuracy_interval(correct[0], confidence)
    rng = np.random.default_rng(0)
    seeds, rows = correct.shape
    means = np.empty(draws)
    for d in range(draws):
        drawn = correct[rng.integers(seeds, size=seeds)]
        means[d] = drawn[:, rng.integers(rows, size=rows)].mean()
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(correct.mean()), float(low), float(high)


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> float:
    """Two-sided p-value of the exact McNemar test (McNemar 1947) that two classifiers err equally often.

    Args:
        correct_a, correct_b: booleans on the same rows. With no row where they differ the p-value is 1.
    """
    from scipy.stats import binomtest

    only_a = int(np.sum(correct_a & ~correct_b))
    only_b = int(np.sum(~correct_a & correct_b))
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b).pvalue)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by size (Guo et al. 2017)."""
    edges = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[edges == b].mean() - correct[edges == b].mean()) * np.mean(edges == b) for b in set(edges)]
    return float(sum(gaps))
