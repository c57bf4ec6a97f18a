"""What a student must beat to be worth its training: the commonest label, and a linear model of word counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cotd.data.examples import select_fraction
from cotd.evaluation.statistics import accuracy_metrics

# Inverse regularisation strengths; the best on validation is kept.
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)


def majority(gold: pd.Series) -> dict[str, Any]:
    """The score of always predicting the commonest of the test labels: `label`, `accuracy`, `ci_low`, `ci_high`, `n`."""
    label = str(gold.mode()[0])
    return {"label": label, **accuracy_metrics((gold == label).to_numpy())}


def tfidf_regression(examples: pd.DataFrame, fraction: float) -> dict[str, Any] | None:
    """Test accuracy of a logistic regression on TF-IDF weights of words and pairs of words, trained on gold labels.

    The baseline of Wang and Manning (2012) without its naive Bayes weights. It sees the same training examples as a student at
    `fraction`, and its regularisation is selected on validation.

    Args:
        examples: the Example table, all splits.

    Returns:
        `fraction`, `accuracy`, `ci_low`, `ci_high`, `n`, `train_examples`, or None if the training examples have fewer than two
        gold labels.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    labelled = examples[examples["label"].notna()]
    train = select_fraction(examples[examples["split"] == "train"], fraction)
    train = train[train["label"].notna()]
    validation, test = (labelled[labelled["split"] == split] for split in ("validation", "test"))
    if train["label"].nunique() < 2:
        return None
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(train) >= 2000 else 1)
    x = vectorizer.fit_transform(train["text"])
    x_validation = vectorizer.transform(validation["text"])
    models = [LogisticRegression(C=c, max_iter=1000).fit(x, train["label"]) for c in STRENGTHS]
    best = max(models, key=lambda m: float(np.mean(m.predict(x_validation) == validation["label"])))
    correct = best.predict(vectorizer.transform(test["text"])) == test["label"].to_numpy()
    return {"fraction": fraction, **accuracy_metrics(correct), "train_examples": len(train)}
