"""Calibration of label scores whose best threshold is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.evaluation.metrics import fit_temperature
from cotd.teachers.calibration import calibrate
from cotd.teachers.config import CalibrationConfig


def biased_scores(n: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Scores that separate the labels at 3, not at 0: at 0 almost all are called positive."""
    rng = np.random.default_rng(0)
    gold = rng.random(n) < 0.5
    return np.where(gold, 4.0, 2.0) + rng.normal(0, 1, n), gold


def test_platt_fixes_threshold_and_confidence() -> None:
    scores, gold = biased_scores()
    assert ((scores > 0) == gold).mean() < 0.55
    fitted = calibrate(CalibrationConfig(), scores[:1000], gold[:1000])
    probability = fitted.probability(scores[1000:])
    assert ((probability >= 0.5) == gold[1000:]).mean() > 0.8  # the best possible is 84 %
    # Two unit Gaussians 2 apart: log odds are 2 (score - 3).
    assert fitted.slope == pytest.approx(2.0, abs=0.3)
    assert -fitted.intercept / fitted.slope == pytest.approx(3.0, abs=0.15)
    sure = probability > 0.9
    assert gold[1000:][sure].mean() == pytest.approx(probability[sure].mean(), abs=0.05)
    assert fitted.rows == 1000
    assert "gold" in fitted.used


@given(
    st.lists(st.floats(-20, 20, allow_subnormal=False), min_size=20, max_size=200, unique_by=lambda x: round(x, 3)),
    st.floats(0.05, 0.95),
)
def test_prior_hits_the_prior_without_gold(values: list[float], prior: float) -> None:
    scores = np.array(values)
    fitted = calibrate(CalibrationConfig(method="prior", prior=prior), scores, np.zeros(len(scores), dtype=bool))
    assert (fitted.probability(scores) > 0.5).mean() == pytest.approx(prior, abs=1.5 / len(scores))
    assert fitted.slope == 1.0
    assert "without their labels" in fitted.used


def test_none_leaves_scores_as_they_are() -> None:
    fitted = calibrate(CalibrationConfig(method="none"), np.array([1.0, 2.0]), np.array([False, True]))
    assert fitted.probability(np.array([0.0, np.log(3)])).tolist() == pytest.approx([0.5, 0.75])
    assert fitted.rows == 0


def test_temperature_finds_how_overconfident_logits_are() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 4000)
    gold = (rng.random(4000) < 1 / (1 + np.exp(-true))).astype(int)
    logits = np.stack([np.zeros(4000), true], axis=1)
    assert fit_temperature(logits, gold) == pytest.approx(1.0, abs=0.1)
    assert fit_temperature(logits * 3, gold) == pytest.approx(3.0, abs=0.3)
