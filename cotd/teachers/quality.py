"""Figures of how good a teacher's labels and rationales are, for the summary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cotd.evaluation.statistics import expected_calibration_error
from cotd.tasks.base import Task
from cotd.teachers.filters import rationales_by_kind, rationales_naming_labels
from cotd.teachers.near_duplicates import near_duplicate_rows
from cotd.utils.text import count_words

PERCENTILES = (5, 25, 50, 75, 95)
# Of how many rationales of a kind near-duplicates are counted, a random sample as ids are hashes; takes some seconds.
COMPARED = 20_000


def label_quality(
    gold: pd.Series, predicted: pd.Series, probability: pd.Series, task: Task, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """The teacher's labels against gold labels; a missing label is a class of its own, "none".

    Args:
        groups: of the rows, see `cotd.evaluation.statistics.group_codes`.

    Returns:
        `rows`; if there are any: of a fixed label set `confusion` (gold label → predicted label → rows) and, if there are several
        gold labels, Cohen's `kappa` with a 95 % interval (bootstrap over rows, or their groups); of labels with probabilities
        `roc_auc` (of two labels), the figures of `calibration_quality`, and `confidence`, which says in words what they are.
    """
    if gold.empty:
        return {"rows": 0}
    missing = "(none)" if "none" in task.labels else "none"
    labelled = predicted.notna().to_numpy()
    y_pred = predicted.astype(object).where(labelled, missing).to_numpy(dtype=object)
    y_true = gold.to_numpy(dtype=object)
    quality: dict[str, Any] = {"rows": len(y_true)}
    if task.labels:
        columns = [*task.labels, *([] if labelled.all() else [missing])]
        quality["confusion"] = {g: {p: int(((y_true == g) & (y_pred == p)).sum()) for p in columns} for g in task.labels}
    if task.labels and len(set(y_true)) > 1:
        quality["kappa"], quality["kappa_low"], quality["kappa_high"] = kappa_interval(y_true, y_pred, groups)
    known = probability.notna().to_numpy() & labelled
    if known.any():
        confidence = probability.to_numpy(dtype=float)[known]
        quality |= calibration_quality(confidence, (y_true == y_pred)[known])
        if task.positive_label and len(set(y_true[known])) == 2:
            from sklearn.metrics import roc_auc_score

            p_positive = np.where(y_pred[known] == task.positive_label, confidence, 1 - confidence)
            quality["roc_auc"] = float(roc_auc_score(y_true[known] == task.positive_label, p_positive))
        quality["confidence"] = f"the probabilities of {known.sum():,} test examples' labels"
    return quality


class VoteQuality:
    """How well calibrated the share of samples with an example's commonest label is: for teachers without probabilities."""

    def __init__(self) -> None:
        self._shares: list[np.ndarray] = []
        self._correct: list[np.ndarray] = []

    def add(self, annotations: pd.DataFrame, gold: pd.Series) -> None:
        """Adds all samples of some examples, not given gold.

        Args:
            gold: training example id → gold label, or None.
        """
        voting = annotations["label_probability"].notna()
        votes = annotations.loc[voting, ["example_id", "sample", "label", "label_probability"]]
        votes = votes.sort_values(["label_probability", "sample"], ascending=[False, True]).drop_duplicates("example_id")
        votes["gold"] = votes["example_id"].map(gold)
        votes = votes[votes["gold"].notna()]
        self._shares.append(votes["label_probability"].to_numpy(dtype=float))
        self._correct.append(votes["label"].to_numpy(dtype=object) == votes["gold"].to_numpy(dtype=object))

    def figures(self) -> dict[str, Any]:
        """As of `calibration_quality`; nothing if no example has a gold label."""
        shares = np.concatenate([*self._shares, np.empty(0)])
        if not len(shares):
            return {}
        quality = calibration_quality(shares, np.concatenate(self._correct))
        return quality | {"confidence": f"the shares of samples that agree, of {len(shares):,} training examples"}


def calibration_quality(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """The expected `calibration_error`, and `reliability`: confidence, accuracy and rows of each tenth that has any.

    Args:
        confidence: (N,) in [0, 1]. correct: (N,) booleans.
    """
    tenths = np.minimum((confidence * 10).astype(int), 9)
    return {
        "calibration_error": expected_calibration_error(confidence, correct),
        "reliability": [
            {
                "confidence": float(confidence[tenths == t].mean()),
                "accuracy": float(correct[tenths == t].mean()),
                "rows": int((tenths == t).sum()),
            }
            for t in sorted(set(tenths))
        ],
    }


def kappa_interval(
    y_true: np.ndarray, y_pred: np.ndarray, groups: np.ndarray | None = None, draws: int = 1000
) -> tuple[float, float, float]:
    """Cohen's kappa (Cohen 1960), and the 95 % percentiles of a bootstrap over rows, or over their groups where they have some."""
    _, codes = np.unique(np.concatenate([y_true, y_pred]).astype(str), return_inverse=True)
    n = codes.max() + 1
    cells = codes[: len(y_true)] * n + codes[len(y_true) :]
    counts = np.bincount(cells, minlength=n * n)

    def kappa(tables: np.ndarray) -> np.ndarray:
        """Of confusion tables of shape (…, classes, classes)."""
        total = tables.sum(axis=(-2, -1))
        observed = np.trace(tables, axis1=-2, axis2=-1) / total
        expected = (tables.sum(axis=-1) * tables.sum(axis=-2)).sum(axis=-1) / total**2
        return np.where(expected < 1, (observed - expected) / np.maximum(1 - expected, 1e-12), 0.0)

    rng = np.random.default_rng(0)
    if groups is None:  # rows drawn with replacement fall into the cells as a multinomial does
        drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=draws)
    else:
        units = int(groups.max()) + 1
        times = (np.bincount(rng.integers(units, size=units), minlength=units) for _ in range(draws))
        drawn = np.stack([np.bincount(cells, weights=drawn_times[groups], minlength=n * n) for drawn_times in times])
    low, high = np.quantile(kappa(drawn.reshape(draws, n, n)), [0.025, 0.975])
    return float(kappa(counts.reshape(n, n))), float(low), float(high)


class RationaleQuality:
    """The usable rationales: how many, how long, how many name their label, how many nearly repeat another example's.

    The first COMPARED rationales of a kind (given gold, or not) are compared with one another.
    """

    def __init__(self, task: Task):
        self._task = task
        self._words: list[np.ndarray] = []
        self._named = 0
        self._compared: dict[bool, list[str]] = {False: [], True: []}

    def add(self, annotations: pd.DataFrame) -> None:
        """Adds the annotations of some examples."""
        for kind, rows in rationales_by_kind(annotations).items():
            self._compared[kind] += annotations["rationale"].iloc[rows[: COMPARED - len(self._compared[kind])]].tolist()
        written = annotations["error"].isna() & (annotations["rationale"] != "")
        usable = annotations.loc[written, ["label", "rationale"]]
        self._words.append(usable["rationale"].map(count_words).to_numpy(dtype=np.int32))
        self._named += int(rationales_naming_labels(usable, self._task).sum())

    def figures(self) -> dict[str, Any]:
        """`rows`; if there are any, shares of them, and percentiles of their numbers of words."""
        words = np.concatenate([*self._words, np.empty(0, dtype=np.int32)])
        if not len(words):
            return {"rows": 0}
        repeats = sum(int(near_duplicate_rows(texts).sum()) for texts in self._compared.values())
        return {
            "rows": len(words),
            "names_its_label": self._named / len(words),
            "near_duplicates": repeats / sum(map(len, self._compared.values())),
            "words": {f"p{q}": float(v) for q, v in zip(PERCENTILES, np.percentile(words, PERCENTILES), strict=True)},
        }
