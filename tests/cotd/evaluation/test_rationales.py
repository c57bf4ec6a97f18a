from __future__ import annotations

import pytest

from cotd.evaluation.rationales import rouge_l, score_rationales, stated_label
from tests.tasks import QUIZ, SENTIMENT, SUMS, TICKETS


@pytest.mark.parametrize(
    ("written", "reference", "expected"),
    [
        ("The film is warm.", "the film is WARM", 1.0),
        ("police killed the gunman", "police kill the gunman", 0.75),  # Lin 2004, section 3.1: 3 of 4 words
        ("the gunman kill police", "police kill the gunman", 0.5),  # the same words in another order: 2 of 4
        ("a b", "x a y b z w", 2 * 2 / 8),
        ("It is dull", "warm and funny", 0.0),
        ("", "warm", 0.0),
        ("!", "?", 0.0),
    ],
)
def test_rouge_l_counts_the_longest_common_subsequence_of_words(written: str, reference: str, expected: float) -> None:
    assert rouge_l(written, reference) == pytest.approx(expected)
    assert rouge_l(reference, written) == pytest.approx(expected)


def test_the_stated_label_is_the_only_one_named() -> None:
    assert stated_label("It speaks Positively of the cast.", SENTIMENT) == "positive"
    assert stated_label("Some negative and some positive words.", SENTIMENT) is None
    assert stated_label("The photograph's negatives were lost.", SENTIMENT) is None


def test_an_option_within_a_longer_one_is_not_stated() -> None:
    task = TICKETS.model_copy(update={"labels": ("bug", "bug report")})
    assert stated_label("They sent a bug report.", task) == "bug report"
    assert stated_label("It belongs in the sea.", QUIZ, ("sea", "sea bed")) == "sea"
    assert stated_label("3 and 4 make 7.", SUMS) == "7"


def test_rationales_are_scored_against_labels_and_teacher() -> None:
    written = ["This is positive.", "This is negative.", "This is warm.", "It is positive."]
    predicted = ["positive", "positive", "positive", "positive"]
    scores = score_rationales(written, predicted, SENTIMENT, ["This is positive.", "", "", "Nothing in common"])
    assert scores == {
        "n_rationales": 4, "rationale_states_label": 0.75, "rationale_agrees": pytest.approx(2 / 3), "n_rouge_l": 2,
        "rationale_rouge_l": 0.5,
    }  # fmt: skip
    assert score_rationales(["No idea."], ["positive"], SENTIMENT) == {"n_rationales": 1, "rationale_states_label": 0.0}
