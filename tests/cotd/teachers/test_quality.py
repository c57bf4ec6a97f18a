"""Figures of how good labels and rationales are, on examples computed by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from cotd.teachers.quality import VoteQuality, kappa_interval, label_quality
from tests.tasks import SENTIMENT


def test_kappa_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    gold = rng.choice(["negative", "positive"], 300)
    predicted = np.where(rng.random(300) < 0.8, gold, rng.choice(["negative", "positive", "none"], 300))
    kappa, low, high = kappa_interval(gold, predicted)
    assert kappa == pytest.approx(cohen_kappa_score(gold, predicted))
    assert low < kappa < high
    assert 0.05 < high - low < 0.25


def test_rows_of_one_group_widen_kappa_s_interval() -> None:
    rng = np.random.default_rng(0)
    gold = rng.choice(["negative", "positive"], 300)
    groups = np.repeat(np.arange(30), 10)
    predicted = np.where(groups % 5 > 0, gold, "positive")  # every fifth film is not understood
    _, low, high = kappa_interval(gold, predicted)
    same, wide_low, wide_high = kappa_interval(gold, predicted, groups)
    assert same == pytest.approx(cohen_kappa_score(gold, predicted))
    assert wide_high - wide_low > 1.5 * (high - low)


def test_label_quality() -> None:
    gold = pd.Series(["positive"] * 4 + ["negative"] * 4)
    predicted = pd.Series(["positive"] * 3 + [None] + ["positive"] + ["negative"] * 3)
    probability = pd.Series([0.95] * 3 + [np.nan] + [0.55] + [0.75] * 3)
    quality = label_quality(gold, predicted, probability, SENTIMENT)
    assert quality["confusion"] == {
        "negative": {"negative": 3, "positive": 1, "none": 0},
        "positive": {"negative": 0, "positive": 3, "none": 1},
    }
    assert quality["reliability"] == [
        {"confidence": 0.55, "accuracy": 0.0, "rows": 1},
        {"confidence": 0.75, "accuracy": 1.0, "rows": 3},
        {"confidence": pytest.approx(0.95), "accuracy": 1.0, "rows": 3},
    ]
    assert quality["calibration_error"] == pytest.approx((0.55 + 3 * 0.25 + 3 * 0.05) / 7)
    assert quality["roc_auc"] == 1.0, "each positive one is thought more likely to be than any negative one"


def test_votes_of_samples_are_a_confidence() -> None:
    """Of two samples that differ, the first counts."""
    votes_of = {"a": "pp", "b": "pn", "c": "np", "d": "nn", "e": "pp"}
    words = {"p": "positive", "n": "negative"}
    rows = [
        {"example_id": i, "sample": s, "label": words[c], "label_probability": labels.count(c) / 2}
        for i, labels in votes_of.items() for s, c in enumerate(labels)
    ]  # fmt: skip
    rows.append({"example_id": "a", "sample": 2, "label": None, "label_probability": np.nan})
    gold = pd.Series({"a": "positive", "b": "positive", "c": "positive", "d": "positive", "e": None})
    votes, unlabelled, table = VoteQuality(), VoteQuality(), pd.DataFrame(rows)
    for _, block in table.groupby(table["example_id"] < "c"):
        votes.add(block, gold)
        unlabelled.add(block, gold.where(gold.isna(), None))
    quality = votes.figures()
    assert quality["reliability"] == [
        {"confidence": 0.5, "accuracy": 0.5, "rows": 2},
        {"confidence": 1.0, "accuracy": 0.5, "rows": 2},
    ]
    assert quality["calibration_error"] == pytest.approx(0.25)
    assert quality["confidence"] == "the shares of samples that agree, of 4 training examples"
    assert unlabelled.figures() == {}


def test_labels_of_one_class_have_no_kappa() -> None:
    same = pd.Series(["positive"] * 5)
    quality = label_quality(same, same, pd.Series([np.nan] * 5), SENTIMENT)
    assert "kappa" not in quality
    assert "calibration_error" not in quality
    assert "roc_auc" not in label_quality(same, same, pd.Series([0.9] * 5), SENTIMENT)
