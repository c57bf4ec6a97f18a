"""How good a teacher's labels and rationales are, in figures for the summary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cotd.evaluation.statistics import expected_calibration_error
from cotd.tasks.base import Task
from cotd.teachers.filters import rationales_by_kind, rationales_naming_labels
from cotd.teachers.near_duplicates import near_duplicate_rows

PERCENTILES = (5, 25, 50, 75, 95)
# Rationales of a kind whose near-duplicates are counted: the first by the reviews' ids, which are hashes; some seconds.
COMPARED = 20_000


def label_quality(gold: pd.Series, predicted: pd.Series, probability: pd.Series, task: Task) -> dict[str, Any]:
    """The teacher's labels against gold, over the same rows; a missing label is a class of its own, "none".

    Returns:
        rows; if there are any: `confusion`, gold label → given label → rows; Cohen's kappa with a 95 % interval (bootstrap
        over rows), where both have more than one class; and, where labels have probabilities, `roc_auc` (of two classes), how
        well those tell the classes apart however they are calibrated, the expected calibration error, the reliability
        diagram's points (confidence, accuracy and rows of each tenth that has any), and `confidence`, what those were in words.
    """
    if gold.empty:
        return {"rows": 0}
    given = predicted.astype(object).where(predicted.notna(), "none").to_numpy()
    wanted = gold.to_numpy(dtype=object)
    columns = [*task.labels, *(["none"] if "none" in given else [])]
    quality: dict[str, Any] = {
        "rows": len(wanted),
        "confusion": {g: {p: int(((wanted == g) & (given == p)).sum()) for p in columns} for g in task.labels},
    }
    if len(set(wanted)) > 1:
        quality["kappa"], quality["kappa_low"], quality["kappa_high"] = kappa_interval(wanted, given)
    known = probability.notna().to_numpy() & (given != "none")
    if known.any():
        quality |= calibration_quality(probability.to_numpy(dtype=float)[known], (wanted == given)[known])
        if len(task.labels) == 2 == len(set(wanted[known])):
            from sklearn.metrics import roc_auc_score

            of_label = probability.to_numpy(dtype=float)[known]
            of_positive = np.where(given[known] == task.positive, of_label, 1 - of_label)
            quality["roc_auc"] = float(roc_auc_score(wanted[known] == task.positive, of_positive))
        quality["confidence"] = f"the probabilities of {known.sum():,} test reviews' labels"
    return quality


class VoteQuality:
    """How far the share of samples that say a review's commonest label can be trusted: for teachers without probabilities."""

    def __init__(self) -> None:
        self._shares: list[np.ndarray] = []
        self._correct: list[np.ndarray] = []

    def add(self, own: pd.DataFrame, gold: pd.Series) -> None:
        """
        Args:
            own: annotations by the teacher alone, all samples of some reviews. gold: training review id → gold label, or None.
        """
        votes = own.loc[own["label_probability"].notna(), ["review_id", "sample", "label", "label_probability"]]
        votes = votes.sort_values(["label_probability", "sample"], ascending=[False, True]).drop_duplicates("review_id")
        wanted = votes["review_id"].map(gold)
        judged, wanted = votes[wanted.notna()], wanted.dropna()
        self._shares.append(judged["label_probability"].to_numpy(dtype=float))
        self._correct.append(judged["label"].to_numpy(dtype=object) == wanted.to_numpy(dtype=object))

    def figures(self) -> dict[str, Any]:
        """As of `calibration_quality`; nothing where no review has a gold label."""
        shares = np.concatenate([*self._shares, np.empty(0)])
        if not len(shares):
            return {}
        quality = calibration_quality(shares, np.concatenate(self._correct))
        return quality | {"confidence": f"the shares of samples that agree, of {len(shares):,} training reviews"}


def calibration_quality(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """The expected calibration error, and the reliability diagram's points: see `label_quality`.

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


def kappa_interval(gold: np.ndarray, given: np.ndarray, draws: int = 1000) -> tuple[float, float, float]:
    """Cohen's kappa (Cohen 1960), and the 95 % percentiles of a bootstrap over rows."""
    classes = {c: k for k, c in enumerate(sorted({*gold, *given}))}
    n = len(classes)
    cells = np.array([classes[g] * n + classes[p] for g, p in zip(gold, given, strict=True)])

    def kappa(tables: np.ndarray) -> np.ndarray:
        """Of confusion tables of shape (…, classes, classes)."""
        total = tables.sum(axis=(-2, -1))
        observed = np.trace(tables, axis1=-2, axis2=-1) / total
        expected = (tables.sum(axis=-1) * tables.sum(axis=-2)).sum(axis=-1) / total**2
        return np.where(expected < 1, (observed - expected) / np.maximum(1 - expected, 1e-12), 0.0)

    counts = np.bincount(cells, minlength=n * n)
    # Rows drawn with replacement fall into the cells as a multinomial does.
    drawn = np.random.default_rng(0).multinomial(len(cells), counts / len(cells), size=draws)
    low, high = np.quantile(kappa(drawn.reshape(draws, n, n)), [0.025, 0.975])
    return float(kappa(counts.reshape(n, n))), float(low), float(high)


class RationaleQuality:
    """The usable rationales: how many, how long, how many name their label, how many nearly repeat another review's.

    Rationales of one kind (given gold, or not) are compared with one another, the first COMPARED of them.
    """

    def __init__(self, task: Task):
        self._task = task
        self._words: list[np.ndarray] = []
        self._named = 0
        self._compared: dict[bool, list[str]] = {False: [], True: []}

    def add(self, annotations: pd.DataFrame) -> None:
        for kind, rows in rationales_by_kind(annotations).items():
            self._compared[kind] += annotations["rationale"].iloc[rows[: COMPARED - len(self._compared[kind])]].tolist()
        written = annotations["error"].isna() & (annotations["rationale"] != "")
        usable = annotations.loc[written, ["label", "rationale"]]
        self._words.append(usable["rationale"].str.count(r"\S+").to_numpy(dtype=np.int32))
        self._named += int(rationales_naming_labels(usable, self._task).sum())

    def figures(self) -> dict[str, Any]:
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
