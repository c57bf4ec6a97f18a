"""Turns a weak teacher's label scores into labels with calibrated probabilities.

Raw label scores of a small language model rank examples well (AUC 0.86) but threshold them badly (61 to 67 %), because its
prior for the words is off. Nothing here ever sees a test row.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.teachers.config import CalibrationConfig


@dataclass(frozen=True)
class Calibration:
    """p(positive) = sigmoid(slope * score + intercept), where score = log P(positive word) - log P(negative word).

    Attributes:
        method: "platt", "prior" or "none". used: what it was fitted on, in words, for the summary.
    """

    method: str
    slope: float
    intercept: float
    rows: int
    used: str

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """p(positive) of each score."""
        from scipy.special import expit

        return expit(self.slope * np.asarray(scores, dtype=float) + self.intercept)

    def label(self, score: float, task: Task) -> tuple[str, float]:
        """(label, its probability) for a score."""
        p_positive = float(self.probability(np.asarray(score)))
        other = next(label for label in task.labels if label != task.positive_label)
        positive = task.labels[1] if task.positive_label is None else task.positive_label
        return (positive, p_positive) if p_positive >= 0.5 else (other, 1 - p_positive)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def calibrate(config: CalibrationConfig, scores: np.ndarray, gold_positive: np.ndarray) -> Calibration:
    """Fits a calibration on held-out scores.

    Methods are "platt": logistic regression of the gold label on the score (Platt 1999), lightly regularised; "prior": the
    threshold is the (1 - prior) quantile of the scores, so that their positive share is `prior`; "none": the identity.

    Args:
        scores: (N,) validation scores, NaN if the teacher gave none. gold_positive: (N,) booleans, for "platt".

    Raises:
        CotdError: there are no scores or, for "platt", only of examples of one label.
    """
    known = ~np.isnan(scores)
    scores, n = scores[known], int(known.sum())
    if not n:
        raise CotdError("the teacher scored none of the validation examples, so its labels cannot be calibrated.")
    if config.method == "none":
        return Calibration("none", 1.0, 0.0, 0, "nothing: raw scores")
    if config.method == "prior":
        threshold = float(np.quantile(scores, 1 - config.prior))
        used = f"{n} validation examples without their labels, and an assumed positive share of {config.prior:.0%}"
        return Calibration("prior", 1.0, -threshold, n, used)
    if len(np.unique(gold_positive[known])) < 2:
        raise CotdError("the teacher scored validation examples of one label only, so its labels cannot be calibrated.")
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=10.0).fit(scores[:, None], gold_positive[known])
    used = f"{n} validation examples with their gold labels"
    return Calibration("platt", float(fitted.coef_[0, 0]), float(fitted.intercept_[0]), n, used)
