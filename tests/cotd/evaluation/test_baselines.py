from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pytest

from cotd.data.examples import Examples
from cotd.evaluation.baselines import majority, tfidf_baseline
from tests.tasks import QUIZ, SENTIMENT, SUMS, TICKETS

LABELS = ("refund", "bug", "question")


def examples(train: Sequence[str | None], validation: Sequence[str], test: Sequence[str]) -> pd.DataFrame:
    rows = [(label, split) for split, labels in zip(("train", "validation", "test"), (train, validation, test), strict=True)
            for label in labels]  # fmt: skip
    table = pd.DataFrame(rows, columns=["label", "split"])
    return table.assign(text=[f"about {label} {i}" for i, label in enumerate(table["label"])])


def test_the_commonest_label_is_that_of_the_training_examples() -> None:
    answer = majority(examples(["positive"] * 3 + ["negative", None], ["negative"], ["negative"] * 3 + ["positive"]), SENTIMENT)
    assert (answer["label"], answer["accuracy"], answer["n"]) == ("positive", 0.25, 4)
    assert answer["name"] == "most common label"
    assert answer["ci_low"] < 0.25 < answer["ci_high"]


def test_without_gold_labels_for_training_it_is_that_of_validation() -> None:
    table = examples([None, None], ["bug", "bug", "refund"], ["bug", "question"])
    assert [majority(table, TICKETS)[key] for key in ("label", "accuracy")] == ["bug", 0.5]


def test_of_numbers_it_is_the_most_frequent_and_of_options_the_most_frequent_position() -> None:
    assert majority(examples(["7", "7", "12"], ["12"], ["7", "12"]), SUMS)["name"] == "most common number"
    table = examples(["b", "d", "e"], ["x"], ["x", "y"])
    table["choices"] = [["a", "b"], ["c", "d"], ["e", "f"], ["x", "y"], ["x", "y"], ["x", "y"]]
    answer = majority(table, QUIZ)
    assert (answer["label"], answer["name"], answer["accuracy"]) == ("option (b)", "most common position", 0.5)


def test_a_linear_model_learns_from_the_fraction_s_gold_labels(movie_examples: Examples) -> None:
    movies = movie_examples.table.groupby("split").head(2500)
    tenth, whole = (tfidf_baseline(movies, SENTIMENT, fraction) for fraction in (0.1, 1.0))
    assert tenth is not None
    assert whole is not None
    assert tenth["train_examples"] == pytest.approx(whole["train_examples"] / 10, rel=0.2)
    assert 0.55 < tenth["accuracy"] < whole["accuracy"] < 0.85
    assert whole["n"] == (movies["split"] == "test").sum()
    unlabelled = movies["label"].where(movies["split"] != "train")
    assert tfidf_baseline(movies.assign(label=unlabelled), SENTIMENT, 1.0) is None


def test_a_linear_model_of_three_labels() -> None:
    made = tfidf_baseline(examples(LABELS * 6, LABELS, LABELS * 2), TICKETS, 1.0)
    assert made is not None
    assert (made["name"], made["accuracy"], made["n"]) == ("TF-IDF + logistic regression", 1.0, 6)


def test_options_are_ranked_by_their_similarity_to_the_text() -> None:
    table = examples(["sky", "sea"], ["sky"], ["sea", "sky"])
    table["choices"] = [["sky", "sea"]] * 5
    made = tfidf_baseline(table, QUIZ, 1.0)
    assert made is not None
    assert (made["name"], made["accuracy"]) == ("TF-IDF similarity of text and option", 1.0)


def test_free_answers_have_no_linear_model() -> None:
    assert tfidf_baseline(examples(["7", "8"], ["7"], ["7"]), SUMS, 1.0) is None
