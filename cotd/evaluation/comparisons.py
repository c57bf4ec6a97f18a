"""Paired comparisons of trained students on one test set: whether A is better than B, and how certain that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cotd.evaluation.statistics import (
    by_group,
    detectable_difference,
    holm,
    mcnemar,
    over_seeds,
    percentiles,
    resampled_accuracies,
    sign_flip_test,
)

ALPHA = 0.05
POWER = 0.8
MIN_DRAWS = 10_000
Verdict = Literal["holds", "opposite", "not shown"]


@dataclass(frozen=True)
class Comparison:
    """A's accuracy minus B's on the same test rows.

    Attributes:
        difference, low, high: mean over rows and seeds, with a 95 % interval that bootstraps rows and seeds (rows alone if
            both have one seed); in [-1, 1].
        p_value: of `test`: "McNemar" if both have one seed and rows no groups, else "permutation" of the rows' signs.
        p_holm: corrected for all comparisons made together.
        detectable: the smallest difference this test finds with 80 % power at 5 %, given how often the two disagree;
            `detectable_holm` with the strictest level of Holm's correction.
    """

    difference: float
    low: float
    high: float
    test: Literal["McNemar", "permutation"]
    p_value: float
    p_holm: float
    detectable: float
    detectable_holm: float

    @property
    def verdict(self) -> Verdict:
        """Whether A beats B.

        It does if the corrected p-value is below 5 % and the interval, which is over seeds too, is above zero: a test over rows
        alone would also find what one lucky training did.
        """
        if self.p_holm < ALPHA and self.low > 0:
            return "holds"
        return "opposite" if self.p_holm < ALPHA and self.high < 0 else "not shown"


def draws_for(comparisons: int) -> int:
    """How many random signs make the smallest p-value, 1 / (draws + 1), survive correction for so many comparisons."""
    return max(MIN_DRAWS, 100 * comparisons)


def compare(
    correct: np.ndarray, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], groups: np.ndarray | None = None
) -> list[Comparison]:
    """Compares sets of students pairwise.

    Args:
        correct: booleans of shape (students, rows): whether each got each test row right.
        pairs: for each comparison, the indices of A's students (its seeds) and of B's.
        groups: of the rows, see `group_codes`: they are what is drawn and what changes sign, and no test is McNemar's, which
            takes rows to be independent.

    Returns:
        One Comparison a pair, in their order.
    """
    if not pairs:
        return []
    rows = correct.shape[1]
    accuracies = resampled_accuracies(correct, groups=groups)
    # Seed means times both numbers of seeds: integers, as the permutation test needs them.
    scaled = np.stack(
        [len(b) * correct[list(a)].sum(axis=0) - len(a) * correct[list(b)].sum(axis=0) for a, b in pairs]
    )  # (pairs, rows)
    p_values = sign_flip_test(scaled, draws_for(len(pairs)), groups)
    single = [groups is None and len(a) == len(b) == 1 for a, b in pairs]
    for i, (a, b) in enumerate(pairs):
        if single[i]:
            p_values[i] = mcnemar(correct[a[0]], correct[b[0]])
    comparisons = []
    for (a, b), one, row, p, adjusted in zip(pairs, single, scaled, p_values, holm(p_values), strict=True):
        differences = row / (len(a) * len(b))
        drawn = over_seeds(accuracies[:, list(a)], seed=1) - over_seeds(accuracies[:, list(b)], seed=2)
        disagreement = float((by_group(differences[:, None], groups).astype(float) ** 2).sum() / rows)
        comparisons.append(
            Comparison(
                float(differences.mean()), *percentiles(drawn), "McNemar" if one else "permutation", float(p), float(adjusted),
                detectable_difference(disagreement, rows, ALPHA, POWER),
                detectable_difference(disagreement, rows, ALPHA / len(pairs), POWER),
            )
        )  # fmt: skip
    return comparisons
