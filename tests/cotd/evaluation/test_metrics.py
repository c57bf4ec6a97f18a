from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support, roc_auc_score

from cotd.evaluation.metrics import score_predictions
from tests.tasks import QUIZ, SENTIMENT, SUMS, TICKETS

LABELS = ["negative", "positive"]


def table(gold: list[str], predicted: list[str]) -> pd.DataFrame:
    p = [0.9 if label == "positive" else 0.1 for label in predicted]
    return pd.DataFrame(
        {"example_id": [f"r{i}" for i in range(len(gold))], "gold": gold, "predicted": predicted}
        | {"score": [0.9] * len(p), "probability_negative": [1 - x for x in p], "probability_positive": p}
    )


def test_precision_and_recall_of_each_label_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    gold, predicted = (rng.choice(LABELS, 50, p=[0.3, 0.7]).tolist() for _ in range(2))
    metrics = score_predictions(table(gold, predicted), SENTIMENT)
    precision, recall, _, _ = precision_recall_fscore_support(gold, predicted, labels=LABELS)
    for i, label in enumerate(LABELS):
        assert (metrics[f"precision_{label}"], metrics[f"recall_{label}"]) == pytest.approx((precision[i], recall[i]))


def test_what_is_undefined_is_absent() -> None:
    metrics = score_predictions(table(["positive"] * 3, ["positive"] * 3), SENTIMENT)
    assert (metrics["precision_positive"], metrics["recall_positive"]) == (1.0, 1.0)
    assert not {"precision_negative", "recall_negative", "roc_auc"} & set(metrics)


def test_three_labels_are_scored_as_scikit_learn_scores_them() -> None:
    rng = np.random.default_rng(0)
    gold, probabilities = rng.choice(TICKETS.labels, 60), rng.dirichlet([1, 1, 1], 60)
    predicted = [TICKETS.labels[i] for i in probabilities.argmax(axis=1)]
    made = pd.DataFrame({"example_id": range(60), "gold": gold, "predicted": predicted, "score": probabilities.max(axis=1)})
    made[[f"probability_{label}" for label in TICKETS.labels]] = probabilities
    metrics = score_predictions(made, TICKETS)
    assert metrics["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    by_name = [TICKETS.labels.index(label) for label in sorted(TICKETS.labels)]
    expected = roc_auc_score(gold, probabilities[:, by_name], multi_class="ovr", average="macro")
    assert metrics["roc_auc"] == pytest.approx(expected)
    assert {f"recall_{label}" for label in TICKETS.labels} <= set(metrics)


def test_options_by_example_have_an_accuracy_and_a_calibration_alone() -> None:
    made = pd.DataFrame(
        {"example_id": ["1", "2"], "gold": ["a wall", "sea"], "predicted": ["a wall", "land"], "score": [1.0, 0.5]}
    )
    metrics = score_predictions(made, QUIZ, {"2": "land"})
    assert metrics == {
        "accuracy": 0.5, "ci_low": pytest.approx(0.095, abs=0.01), "ci_high": pytest.approx(0.905, abs=0.01), "n": 2,
        "expected_calibration_error": 0.25, "teacher_agreement": 1.0, "n_teacher": 1,
    }  # fmt: skip


def test_a_number_that_was_not_given_is_wrong_and_counted() -> None:
    made = pd.DataFrame({"example_id": ["1", "2", "3"], "gold": ["7", "8", "9"], "predicted": ["7", None, "8"], "score": None})
    metrics = score_predictions(made, SUMS, {"2": "8"})
    assert (metrics["accuracy"], metrics["answered"], metrics["teacher_agreement"]) == (
        pytest.approx(1 / 3),
        pytest.approx(2 / 3),
        0,
    )
    assert not {"macro_f1", "roc_auc", "expected_calibration_error"} & set(metrics)
