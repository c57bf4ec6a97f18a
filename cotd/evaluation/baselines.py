"""What a student must beat to be worth its training: the commonest answer, and a linear model of word counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cotd.data.examples import select_fraction
from cotd.evaluation.statistics import accuracy_metrics, group_codes
from cotd.tasks.base import Task
from cotd.tasks.multiple_choice import option_marks

# Inverse regularisation strengths; the best on validation is kept.
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
REGRESSION, SIMILARITY = "TF-IDF + logistic regression", "TF-IDF similarity of text and option"


def majority(examples: pd.DataFrame, task: Task) -> dict[str, Any]:
    """The test accuracy of always giving the commonest answer of the training examples.

    Where each example has its own options that is the commonest position of the right one. Without gold labels for training,
    the answer is that of the validation examples.

    Args:
        examples: the Example table, all splits.

    Returns:
        `label`, `name` (what it is the commonest of), `accuracy`, `ci_low`, `ci_high`, `n`.
    """
    labelled = examples[examples["label"].notna()]
    answers = labelled["label"].astype(str)
    name = "most common number" if task.free_answers else "most common label"
    if task.needs_choices:
        given = zip(labelled["choices"], labelled["label"], strict=True)
        marks = [option_marks(len(own))[list(own).index(label)] for own, label in given]
        answers = pd.Series([f"option {mark}" for mark in marks], index=labelled.index)
        name = "most common position"
    train, validation, test = (answers[labelled["split"] == split] for split in ("train", "validation", "test"))
    label = str((train if len(train) else validation).mode()[0])
    return {"label": label, "name": name, **accuracy_metrics((test == label).to_numpy(), groups_of(examples.loc[test.index]))}


def tfidf_baseline(examples: pd.DataFrame, task: Task, fraction: float) -> dict[str, Any] | None:
    """The test accuracy of a linear model of TF-IDF weights of words and pairs of words.

    For a fixed set of labels: a logistic regression, the baseline of Wang and Manning (2012) without its naive Bayes weights. It
    sees the same training examples as a student at `fraction`, their gold labels too, and its regularisation is selected on
    validation. Where each example has its own options: the one that is most similar to its text, by the cosine; the training
    examples tell how rare words are, their labels nothing.

    Args:
        examples: the Example table, all splits.

    Returns:
        `name`, `fraction`, `accuracy`, `ci_low`, `ci_high`, `n`, `train_examples`, or None if answers are free, or the training
        examples have fewer than two gold labels.
    """
    train = select_fraction(examples[examples["split"] == "train"], fraction)
    labelled = examples[examples["label"].notna()]
    validation, test = (labelled[labelled["split"] == split] for split in ("validation", "test"))
    if task.needs_choices:
        return {"name": SIMILARITY, "fraction": fraction, **most_similar(train, test), "train_examples": len(train)}
    train = train[train["label"].notna()]
    if task.free_answers or train["label"].nunique() < 2:
        return None
    from sklearn.linear_model import LogisticRegression

    vectors = vectorizer(len(train))
    x = vectors.fit_transform(train["text"])
    x_validation = vectors.transform(validation["text"])
    models = [LogisticRegression(C=c, max_iter=1000).fit(x, train["label"]) for c in STRENGTHS]
    best = max(models, key=lambda m: float(np.mean(m.predict(x_validation) == validation["label"])))
    correct = best.predict(vectors.transform(test["text"])) == test["label"].to_numpy()
    return {
        "name": REGRESSION,
        "fraction": fraction,
        **accuracy_metrics(correct, groups_of(test)),
        "train_examples": len(train),
    }


def most_similar(train: pd.DataFrame, test: pd.DataFrame) -> dict[str, float]:
    """Accuracy of choosing the option whose TF-IDF vector is nearest to the text's; of equally near ones the first."""
    texts = [f"{text} {' '.join(own)}" for text, own in zip(train["text"], train["choices"], strict=True)]
    vectors = vectorizer(len(texts)).fit(texts)
    x = vectors.transform(test["text"])
    options = [option for own in test["choices"] for option in own]
    rows = np.repeat(np.arange(len(test)), [len(own) for own in test["choices"]])
    similarity = np.asarray(vectors.transform(options).multiply(x[rows]).sum(axis=1)).ravel()  # vectors have length 1
    ends = np.cumsum(np.bincount(rows))
    chosen = [own[int(np.argmax(part))] for own, part in zip(test["choices"], np.split(similarity, ends[:-1]), strict=True)]
    return accuracy_metrics(np.array(chosen) == test["label"].to_numpy(), groups_of(test))


def groups_of(examples: pd.DataFrame) -> np.ndarray | None:
    """The numbers of the examples' groups, see `group_codes`."""
    return group_codes(examples.get("group"))


def vectorizer(texts: int) -> Any:
    """TF-IDF weights of words and of pairs of words, those of a single text left out where there are many texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2 if texts >= 2000 else 1)
