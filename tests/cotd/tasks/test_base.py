"""Answers of every kind of task: what is read, what is not guessed, and tasks as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cotd.tasks.base import Task
from cotd.tasks.registry import parse_task
from tests.tasks import SENTIMENT

TICKETS = parse_task(
    {"name": "tickets", "kind": "classification", "labels": {"refund": [0, "R"], "bug": [1, True], "other": ["2", "misc. things"]},
     "noun": "support ticket"}
)  # fmt: skip
CHOICE = parse_task({"name": "quiz", "kind": "multiple_choice"})
NUMBER = parse_task({"name": "sums", "kind": "numeric"})
CHOICES = ["a wall", "the sea", "B side"]


@pytest.mark.parametrize(
    "value", ["positive", " Positive. ", "POS", "1", 1, 1.0, "1.0", "__label__positive", "__label__1", "fresh"]
)
def test_ways_to_write_positive(value: object) -> None:
    assert SENTIMENT.parse(value) == "positive"


@pytest.mark.parametrize("value", ["negative", "neg", "0", 0, 0.0, "Rotten"])
def test_ways_to_write_negative(value: object) -> None:
    assert SENTIMENT.parse(value) == "negative"


@pytest.mark.parametrize(
    "value", [None, float("nan"), "", "mixed", "not positive", 2, -1, 0.5, ["positive"], np.array([1, 1]), {}, True]
)
def test_other_values_are_not_labels(value: object) -> None:
    assert SENTIMENT.parse(value) is None


@pytest.mark.parametrize(
    ("value", "label"),
    [(0, "refund"), ("r", "refund"), (1.0, "bug"), (True, "bug"), (np.True_, "bug"), (np.int64(2), "other"),
     ("Misc. Things", "other"), (3, None), (False, None), ("refunds", None)],
)  # fmt: skip
def test_labels_of_ones_own(value: object, label: str | None) -> None:
    assert TICKETS.parse(value) == label


@pytest.mark.parametrize(
    ("value", "option"),
    [
        ("The sea", "the sea"),
        ("A", "a wall"),
        ("b", "the sea"),
        ("b side", "B side"),
        ("D", None),
        (0, None),
        ("wall", None),
        (None, None),
    ],
)
def test_options_are_named_by_text_or_letter(value: object, option: str | None) -> None:
    assert CHOICE.parse(value, CHOICES) == option


@pytest.mark.parametrize(
    ("words", "option"),
    [("(b)", "the sea"), ("B.", "the sea"), ("(a) a wall", "a wall"), ("“the sea”.", "the sea"), ("(a) the sea", None),
     ("(c) whatever follows it", "B side"), ("a boat", None), ("", None)],
)  # fmt: skip
def test_options_in_a_models_words(words: str, option: str | None) -> None:
    assert CHOICE.find(words, CHOICES) == option


@pytest.mark.parametrize(
    ("value", "number"),
    [("51", "51"), (8.0, "8"), ("1,200.50", "1200.5"), ("$3.00", "3"), ("-0", "0"), ("-4", "-4"), ("12 %", "12"), (".5", "0.5"),
     (1e3, "1000"), ("about 8", None), ("8 or 9", None), ("", None), (None, None), ("1,20", None)],
)  # fmt: skip
def test_numbers(value: object, number: str | None) -> None:
    assert NUMBER.parse(value) == number


@pytest.mark.parametrize(
    ("words", "number"),
    [("3 + 4 = 7 apples.", "7"), ("It is 1,000.", "1000"), ("between 3-5", "5"), ("-2", "-2"), ("none", None), ("R2D2", None)],
)
def test_the_last_number_in_a_models_words(words: str, number: str | None) -> None:
    assert NUMBER.find(words) == number


def test_what_is_read_and_written() -> None:
    assert CHOICE.render("Where is a shelf?", CHOICES) == "Where is a shelf? (a) a wall (b) the sea (c) B side"
    assert SENTIMENT.render("Fine.") == "Fine."
    assert (TICKETS.options(), CHOICE.options(CHOICES), NUMBER.options()) == (("refund", "bug", "other"), tuple(CHOICES), None)
    assert TICKETS.with_rationale("Broken.", "It broke.") == "It broke. Support ticket: Broken."


@pytest.mark.parametrize("task", [SENTIMENT, TICKETS, CHOICE, NUMBER])
def test_a_task_survives_json(task: Task) -> None:
    plain: Any = json.loads(json.dumps(task.to_dict()))
    assert parse_task(plain) == task
