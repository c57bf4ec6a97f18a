import pandas as pd
import pytest

from cotd.data.examples import Examples
from cotd.evaluation.baselines import majority, tfidf_regression


def test_the_commonest_label_is_always_answered() -> None:
    answer = majority(pd.Series(["positive", "negative", "positive", "positive"]))
    assert (answer["label"], answer["accuracy"], answer["n"]) == ("positive", 0.75, 4)
    assert answer["ci_low"] < 0.75 < answer["ci_high"]


def test_a_linear_model_learns_from_the_fraction_s_gold_labels(movie_reviews: Examples) -> None:
    reviews = movie_reviews.table.groupby("split").head(2500)
    tenth, whole = (tfidf_regression(reviews, fraction) for fraction in (0.1, 1.0))
    assert tenth is not None
    assert whole is not None
    assert tenth["train_reviews"] == pytest.approx(whole["train_reviews"] / 10, rel=0.2)
    assert 0.55 < tenth["accuracy"] < whole["accuracy"] < 0.85
    assert whole["n"] == (reviews["split"] == "test").sum()
    assert tfidf_regression(reviews.assign(label=reviews["label"].where(reviews["split"] != "train")), 1.0) is None
