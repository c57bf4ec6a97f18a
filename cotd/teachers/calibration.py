"""Turns a weak teacher's scores of answers into answers with calibrated probabilities.

Raw scores of a small language model rank examples well (AUC 0.86) but threshold them badly (61 to 67 %), because its prior for
the words is off. Nothing here ever sees a test row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.teachers.config import CalibrationConfig

# The inverse strength of the penalty on slope and biases, scikit-learn's `C`: the data decide as soon as there are some.
C = 10.0


@dataclass(frozen=True)
class Calibration:
    """p = softmax(slope * s + biases), where s are the log-probabilities of an example's options (Guo et al. 2017, section 4.2).

    With two labels this is Platt's sigmoid (1999) of the difference of their log-probabilities.

    Attributes:
        method: "platt", "prior" or "none".
        biases: of each label, or of each position among an example's options; that of `reference` is 0.
        rows: how many it was fitted on. used: what it was fitted on, in words, for the summary.
    """

    method: str
    slope: float
    biases: tuple[float, ...]
    reference: int
    rows: int
    used: str

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """(N, L) probabilities for (N, L) scores; an option that an example lacks has the score -inf and the probability 0."""
        from scipy.special import softmax

        return softmax(self._logits(scores), axis=-1)

    def _logits(self, scores: np.ndarray) -> np.ndarray:
        lead = differences(scores, self.reference)
        return np.where(np.isneginf(lead), lead, self.slope * lead + np.array(self.biases))

    def choose(self, scores: np.ndarray) -> tuple[int, float]:
        """(Position of the likeliest option, its probability) for (L,) scores; of two labels the positive one wins a draw."""
        logits = self._logits(scores[None])[0]
        position = int(np.lexsort((np.arange(len(logits)) != self.reference, logits))[-1])
        return position, float(self.probabilities(scores[None])[0, position])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"biases": list(self.biases)}


def differences(scores: np.ndarray, reference: int) -> np.ndarray:
    """(N, L) scores minus the one of the reference."""
    scores = np.asarray(scores, dtype=float)
    return scores - scores[..., reference : reference + 1]


def calibrate(config: CalibrationConfig, scores: np.ndarray, gold: np.ndarray, task: Task) -> Calibration:
    """Fits a calibration on held-out scores.

    Methods are "platt": logistic regression of the gold answer on the scores, with one slope and a bias for each label, lightly
    regularised; "prior": biases by which the labels have the shares of `prior`, of two labels those of the predicted labels,
    of more those of the mean probabilities; "none": the scores as they are.

    Args:
        scores: (N, L) validation log-probabilities of the options; rows of NaN where the teacher gave none, -inf for options
            that an example lacks. gold: (N,) the position of the gold answer, for "platt".

    Raises:
        CotdError: there are no scores or, for "platt", only of examples of one answer.
    """
    known = ~np.isnan(scores).any(axis=1)
    scores, gold = np.asarray(scores[known], dtype=float), gold[known]
    n, size = scores.shape
    if not n:
        raise CotdError("the teacher scored none of the validation examples, so its labels cannot be calibrated.")
    positive = task.labels.index(task.positive_label) if task.positive_label else None
    reference = 0 if positive is None else 1 - positive
    if config.method == "none":
        return Calibration("none", 1.0, (0.0,) * size, reference, 0, "nothing: raw scores")
    if config.method == "prior":
        shares = prior_shares(config.prior, scores, task)
        used = f"{n} validation examples without their labels, and {prior_words(config.prior, task)}"
        biases = biases_for_positive(scores, shares, positive) if positive is not None else biases_for_shares(scores, shares)
        return Calibration("prior", 1.0, tuple((biases - biases[reference]).tolist()), reference, n, used)
    if len(np.unique(gold)) < 2:
        raise CotdError("the teacher scored validation examples of one label only, so its labels cannot be calibrated.")
    slope, biases = fit_two(scores, gold, positive) if positive is not None else fit_many(scores, gold)
    used = f"{n} validation examples with their gold labels"
    return Calibration("platt", slope, tuple((biases - biases[reference]).tolist()), reference, n, used)


def fit_two(scores: np.ndarray, gold: np.ndarray, positive: int) -> tuple[float, np.ndarray]:
    """(slope, (2,) biases) of two labels: logistic regression on the difference of their scores."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=C).fit(differences(scores, 1 - positive)[:, [positive]], gold == positive)
    biases = np.zeros(2)
    biases[positive] = fitted.intercept_[0]
    return float(fitted.coef_[0, 0]), biases


def fit_many(scores: np.ndarray, gold: np.ndarray) -> tuple[float, np.ndarray]:
    """(slope, (L,) biases) of any number of options, by maximum likelihood with a light penalty, which is convex."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    rows, lacking = np.arange(len(scores)), np.isneginf(scores)
    finite = np.where(lacking, 0.0, scores - scores.max(axis=1, keepdims=True))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, biases = parameters[0], parameters[1:]
        logits = np.where(lacking, -np.inf, slope * finite + biases)
        log_p = logits - logsumexp(logits, axis=1, keepdims=True)
        error = np.exp(log_p)
        error[rows, gold] -= 1
        gradient = np.append((error * finite).sum(), error.sum(axis=0)) + parameters / C
        return float(-log_p[rows, gold].sum() + (parameters**2).sum() / (2 * C)), gradient

    start = np.append(1.0, np.zeros(scores.shape[1]))
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] + [(None, None)] * scores.shape[1])
    return float(fitted.x[0]), fitted.x[1:]


def prior_shares(prior: float | Mapping[str, float] | None, scores: np.ndarray, task: Task) -> np.ndarray:
    """(L,) the share of each label, or of each position: equal ones unless `prior` names them."""
    if isinstance(prior, Mapping):
        return np.array([prior[label] for label in task.labels])
    if prior is not None:
        return np.array([prior if label == task.positive_label else 1 - prior for label in task.labels])
    present = ~np.isneginf(scores)
    return (present / present.sum(axis=1, keepdims=True)).mean(axis=0)


def prior_words(prior: float | Mapping[str, float] | None, task: Task) -> str:
    """What was assumed of the labels' shares."""
    if prior is None:
        return "equal shares of the labels" if task.labels else "equal shares of the positions"
    shares = prior if isinstance(prior, Mapping) else {task.positive_label: prior}
    return f"assumed shares of the labels ({', '.join(f'{label} {share:.0%}' for label, share in shares.items())})"


def biases_for_positive(scores: np.ndarray, shares: np.ndarray, positive: int) -> np.ndarray:
    """(2,) biases by which the positive label is predicted of its share of the examples."""
    biases = np.zeros(2)
    biases[positive] = -np.quantile(differences(scores, 1 - positive)[:, positive], 1 - shares[positive])
    return biases


def biases_for_shares(scores: np.ndarray, shares: np.ndarray, rounds: int = 1000) -> np.ndarray:
    """(L,) biases by which the mean probabilities are `shares`: each is moved by what is missing, as in iterative scaling.

    Each round brings them nearer (Saerens et al. 2002 adjust a classifier to new priors; Sinkhorn 1967 for the convergence).
    """
    from scipy.special import softmax

    biases = np.zeros(len(shares))
    for _ in range(rounds):
        step = np.log(shares) - np.log(np.maximum(softmax(scores + biases, axis=1).mean(axis=0), 1e-300))
        biases += step - step[0]
        if np.abs(step - step.mean()).max() < 1e-6:
            break
    return biases
