import pandas as pd
import pytest

from cotd.data.examples import Examples
from cotd.evaluation.baselines import majority, tfidf_regression


def test_the_commonest_label_is_always_answered() -> None:
    answer = majority(pd.Series(["positive", "negative", "positive", "positive"]))
    assert (answer["label"], answer["accuracy"], answer["n"]) == ("positive", 0.75, 4)
    assert answer["ci_low"] < 0.75 < answer["ci_high"]


def test_a_linear_model_learns_from_the_fraction_s_gold_labels(movie_examples: Examples) -> None:
    examples = movie_examples.table.groupby("split").head(2500)
    tenth, whole = (tfidf_regression(examples, fraction) for fraction in (0.1, 1.0))
    assert tenth is not None
    assert whole is not None
    assert tenth["train_examples"] == pytest.approx(whole["train_examples"] / 10, rel=0.2)
    assert 0.55 < tenth["accuracy"] < whole["accuracy"] < 0.85
    assert whole["n"] == (examples["split"] == "test").sum()
    assert tfidf_regression(examples.assign(label=examples["label"].where(examples["split"] != "train")), 1.0) is None
