"""A task's labels: the ways to write them, and the task as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cotd.tasks.base import Task
from cotd.tasks.registry import SENTIMENT


@pytest.mark.parametrize("value", ["positive", " Positive. ", "POS", "1", 1, 1.0, "fresh"])
def test_ways_to_write_positive(value: object) -> None:
    assert SENTIMENT.parse_label(value) == "positive"


@pytest.mark.parametrize("value", ["negative", "neg", "0", 0, 0.0, "Rotten"])
def test_ways_to_write_negative(value: object) -> None:
    assert SENTIMENT.parse_label(value) == "negative"


@pytest.mark.parametrize(
    "value", [None, float("nan"), "", "mixed", "not positive", 2, -1, 0.5, ["positive"], np.array([1, 1]), {}]
)
def test_other_values_are_not_labels(value: object) -> None:
    assert SENTIMENT.parse_label(value) is None


def test_a_task_survives_json() -> None:
    again = Task.from_dict(json.loads(json.dumps(SENTIMENT.to_dict())))
    assert again == SENTIMENT
    assert again.parse_label("fresh") == "positive"
