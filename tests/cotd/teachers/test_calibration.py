"""Calibration of label scores whose best threshold is known."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from cotd.evaluation.metrics import fit_temperature
from cotd.teachers.calibration import calibrate
from cotd.teachers.config import CalibrationConfig
from tests.tasks import QUIZ, SENTIMENT, TICKETS


def biased_scores(n: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) scores whose difference separates the labels at 3, not at 0: at 0 almost all are called positive."""
    rng = np.random.default_rng(0)
    gold = (rng.random(n) < 0.5).astype(int)
    return two(np.where(gold == 1, 4.0, 2.0) + rng.normal(0, 1, n)), gold


def two(difference: np.ndarray) -> np.ndarray:
    """(N, 2) log-probabilities of negative and positive with a difference."""
    return np.stack([-np.logaddexp(0, difference), -np.logaddexp(0, -difference)], axis=1)


def test_platt_fixes_threshold_and_confidence() -> None:
    scores, gold = biased_scores()
    assert (scores.argmax(axis=1) == gold).mean() < 0.55
    fitted = calibrate(CalibrationConfig(), scores[:1000], gold[:1000], SENTIMENT)
    probability = fitted.probabilities(scores[1000:])[:, 1]
    assert ((probability >= 0.5) == gold[1000:]).mean() > 0.8  # the best possible is 84 %
    # Two unit Gaussians 2 apart: log odds are 2 (score - 3).
    assert fitted.slope == pytest.approx(2.0, abs=0.3)
    assert -fitted.biases[1] / fitted.slope == pytest.approx(3.0, abs=0.15)
    sure = probability > 0.9
    assert gold[1000:][sure].mean() == pytest.approx(probability[sure].mean(), abs=0.05)
    assert fitted.rows == 1000
    assert "gold" in fitted.used


@given(
    st.lists(st.floats(-20, 20, allow_subnormal=False), min_size=20, max_size=200, unique_by=lambda x: round(x, 3)),
    st.floats(0.05, 0.95),
)
def test_prior_hits_the_prior_without_gold(values: list[float], prior: float) -> None:
    scores = two(np.array(values))
    fitted = calibrate(CalibrationConfig(method="prior", prior=prior), scores, np.zeros(len(scores), dtype=int), SENTIMENT)
    assert (fitted.probabilities(scores)[:, 1] > 0.5).mean() == pytest.approx(prior, abs=1.5 / len(scores))
    assert fitted.slope == 1.0
    assert "without their labels" in fitted.used


def test_none_leaves_scores_as_they_are() -> None:
    fitted = calibrate(CalibrationConfig(method="none"), two(np.array([1.0, 2.0])), np.array([0, 1]), SENTIMENT)
    assert fitted.probabilities(two(np.array([0.0, np.log(3)])))[:, 1].tolist() == pytest.approx([0.5, 0.75])
    assert fitted.rows == 0


# --- more than two labels -----------------------------------------------------------------------------------------

BIASES = np.array([0.0, 2.0, -1.0])


def biased_log_probabilities(n: int, shares: Sequence[float] = (0.5, 0.3, 0.2)) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) log-probabilities that are half as sure as they may be, moved by BIASES; and gold labels."""
    rng = np.random.default_rng(0)
    gold = rng.choice(3, size=n, p=shares)
    true = (
        np.log(shares) + 1.5 * np.eye(3)[gold] + rng.normal(0, 1, (n, 3)) * np.sqrt(1.5)
    )  # log odds of 1.5 and variance 2 · 1.5
    return log_softmax((true + BIASES) / 2, axis=1), gold


def test_known_biases_of_three_labels_are_recovered() -> None:
    scores, gold = biased_log_probabilities(20_000)
    fitted = calibrate(CalibrationConfig(), scores, gold, TICKETS)
    assert fitted.slope == pytest.approx(2.0, abs=0.1)
    assert fitted.biases == pytest.approx([0.0, -2.0, 1.0], abs=0.15)
    probabilities = fitted.probabilities(scores)
    assert (probabilities.argmax(axis=1) == gold).mean() > (scores.argmax(axis=1) == gold).mean() + 0.1
    assert probabilities.max(axis=1).mean() == pytest.approx((probabilities.argmax(axis=1) == gold).mean(), abs=0.01)
    assert json.loads(json.dumps(fitted.to_dict()))["biases"] == list(fitted.biases)


def test_prior_gives_three_labels_their_shares_without_gold() -> None:
    scores, gold = biased_log_probabilities(2000)
    shares = {"refund": 0.5, "bug": 0.3, "question": 0.2}
    fitted = calibrate(CalibrationConfig(method="prior", prior=shares), scores, np.full(2000, -1), TICKETS)
    assert fitted.probabilities(scores).mean(axis=0) == pytest.approx(list(shares.values()), abs=1e-4)
    assert (fitted.probabilities(scores).argmax(axis=1) == gold).mean() > (scores.argmax(axis=1) == gold).mean() + 0.1
    assert "refund 50%" in fitted.used
    equal = calibrate(CalibrationConfig(method="prior"), scores, np.full(2000, -1), TICKETS)
    assert equal.probabilities(scores).mean(axis=0) == pytest.approx([1 / 3] * 3, abs=1e-4)


@pytest.mark.parametrize("method", ["platt", "prior", "none"])
def test_options_that_an_example_lacks_have_no_probability(method: str) -> None:
    with np.errstate(divide="ignore"):
        scores = np.log([[0.8, 0.1, 0.1], [0.9, 0.1, 0.0], [0.7, 0.2, 0.1], [0.6, 0.4, 0.0]] * 10).astype(np.float32)
    fitted = calibrate(CalibrationConfig(method=method), scores, np.array([0, 1, 2, 1] * 10), QUIZ)  # type: ignore[arg-type]
    probabilities = fitted.probabilities(scores)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert (probabilities[1::2, 2] == 0).all()
    assert fitted.choose(scores[1])[0] in (0, 1)
    if method == "prior":  # positions equally often, where there are so many
        assert probabilities.mean(axis=0) == pytest.approx([5 / 12, 5 / 12, 1 / 6], abs=1e-4)


def test_temperature_finds_how_overconfident_logits_are() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 4000)
    gold = (rng.random(4000) < 1 / (1 + np.exp(-true))).astype(int)
    logits = np.stack([np.zeros(4000), true], axis=1)
    assert fit_temperature(logits, gold) == pytest.approx(1.0, abs=0.1)
    assert fit_temperature(logits * 3, gold) == pytest.approx(3.0, abs=0.3)
