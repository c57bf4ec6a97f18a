from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import precision_recall_fscore_support

from cotd.evaluation.metrics import score_predictions
from tests.tasks import SENTIMENT

LABELS = ["negative", "positive"]


def table(gold: list[str], predicted: list[str]) -> pd.DataFrame:
    p = [0.9 if label == "positive" else 0.1 for label in predicted]
    return pd.DataFrame(
        {"example_id": [f"r{i}" for i in range(len(gold))], "gold": gold, "predicted": predicted}
        | {"probability_negative": [1 - x for x in p], "probability_positive": p}
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
