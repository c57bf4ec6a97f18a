"""The answer in a language model's words, whatever it put around it; and none where it did not say one plainly."""

from __future__ import annotations

import pytest

from cotd.tasks.find import find_answer
from cotd.tasks.registry import parse_task
from tests.tasks import QUIZ, SENTIMENT, SUMS, TICKETS

OPTIONS = ["a wall", "the sea", "a sign"]
POSITIVE = [
    "Positive", "**Positive**", "Label: Positive.", "**Label:** positive", "sentiment = POSITIVE", "Final answer: `positive`",
    "Because it praises the film.\nSentiment: positive", "Positive (0.93)", "positive, 93 %", "positive with probability 0.8",
    "Positive [very sure]", "Positive. The reviewer enjoyed all of it.", "positive - it praises all of the film",
    "So the sentiment is positive.", "I think this is positive.", "The review is positive (0.7).",
    '{"label": "Positive", "rationale": "It praises."}', "{'sentiment': 'positive',}", '```json\n{"Answer": "positive"}\n```',
    '{"rationale": "Is it {bad}? No.", "result": {"label": "**positive**"}}', "<think>Negative? No.</think>Positive",
    "Negative at first sight.\n</thinking>\n\nPositive", "[THINK]negative[/THINK] positive", "◁think▷negative◁/think▷positive",
    "Positive, with 90 % confidence", "Sentiment：positive。", "<answer>\nPositive\n</answer>", r"So it is \boxed{\text{Positive}}.",
    "## Positive", "- positive", "I would say positive.", "The review is clearly positive.", "It is positive because it praises.",
    "So the sentiment of the review is positive.", "Positive\n\nReview: It broke.\nSentiment: negative",
    "<|channel|>analysis<|message|>negative?<|end|><|start|>assistant<|channel|>final<|message|>positive<|return|>",
    "1. Positive", "=> positive", "Positive ✅", "👍 positive", "### Answer\npositive", "It is not bad; it is positive.",
    "The review is not negative but positive.", "It is not negative, but rather positive.",
]  # fmt: skip
NO_ANSWER = [
    "Mixed", "", "not positive", "It is not positive.", "It isn't positive.", "positive or negative", "positive?", "Not: positive",
    "positive\nnegative", "positive, negative or mixed", "<think>It is positive.", "Some would call it positive.", "{" * 100_000,
    '{"label": null}', "The claim that it is positive is false.",
    "positive ❌", "It is positive; it is not negative.", "It is not positive but could be.", "The answer\nis positive or negative",
]  # fmt: skip


@pytest.mark.parametrize("words", POSITIVE)
def test_a_label_is_found(words: str) -> None:
    assert find_answer(words, SENTIMENT) == "positive"


@pytest.mark.parametrize("words", NO_ANSWER)
def test_no_label_is_guessed(words: str) -> None:
    assert find_answer(words, SENTIMENT) is None


@pytest.mark.parametrize(
    "words",
    [
        "b",
        "(B)",
        "Answer: (b) the sea",
        "So the answer is (b).",
        "b (0.9)",
        "The sea",
        "Option B",
        r"\boxed{b}",
        '{"answer": "(b)"}',
        "the sea [sure]",
    ],
)
def test_an_option_is_found(words: str) -> None:
    assert find_answer(words, QUIZ, OPTIONS) == "the sea"


@pytest.mark.parametrize(
    "words",
    ["-5", "Answer: -5", "3 - 8 = -5", "-5 (0.93)", "Answer: -5 apples.\nThere were 3.", '{"answer": -5}', "#### -5", "−5"],
)
def test_a_number_is_found(words: str) -> None:
    assert find_answer(words, SUMS) == "-5"


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (r"\boxed{1{,}200}", "1200"),
        ("12\u202f000 m", "12000"),
        ("7/2", None),
        ("3 1/2 cups", None),
        ("1.200,50", None),
        ("4,5", None),
    ],
)
def test_a_number_that_is_written_in_another_way_is_read_whole_or_not(words: str, number: str | None) -> None:
    assert find_answer(words, SUMS) == number


def test_a_label_s_words_may_be_joined_in_any_way() -> None:
    task = parse_task({"name": "bank", "labels": ["card_lost", "top-up failed", "other"]})
    assert [find_answer(w, task) for w in ("Card lost.", "card-lost", "Top up failed", "card")] == [
        "card_lost", "card_lost", "top-up failed", None
    ]  # fmt: skip
    assert task.parse("card lost") is None, "a gold label is as the task writes it"


def test_a_teachers_own_words_count() -> None:
    assert find_answer("Answer: Money back (0.8)", TICKETS, words={"money back": "refund"}) == "refund"
