"""The check of a runtime against its student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from cotd.students.student import Prediction, Student
from serve.runtimes.base import Unfit
from serve.runtimes.parity import check_parity, difference


class Biased:
    """A runtime that adds `bias` to the logits of the first label."""

    def __init__(self, student: Student, bias: float):
        self.student = student
        self.bias = bias

    def label_logits(self, texts: Sequence[str], choices: Any = None) -> tuple[Any, list[bool]]:
        logits, truncated = self.student.label_logits(texts)
        return logits + torch.tensor([self.bias, 0.0]), truncated

    def predict(self, texts: Sequence[str], choices: Any = None) -> list[Prediction]:
        return self.student.predictions(*self.label_logits(texts))


def test_a_runtime_that_differs_is_refused(student: Student) -> None:
    check_parity(Biased(student, 1e-5), student, 1e-3)
    with pytest.raises(Unfit, match=r"8 of 8 probes.*a probability differs by 0\.\d+, the tolerance is 0.001"):
        check_parity(Biased(student, 1.0), student, 1e-3)


def prediction(positive: float, truncated: bool = False) -> Prediction:
    label = "positive" if positive > 0.5 else "negative"
    return Prediction(label, max(positive, 1 - positive), {"negative": 1 - positive, "positive": positive}, truncated)


@pytest.mark.parametrize(
    ("actual", "expected", "problem"),
    [
        (prediction(0.94), prediction(0.90), None),
        (prediction(0.96), prediction(0.90), "a probability differs by 0.0600, the tolerance is 0.05"),
        (prediction(0.49), prediction(0.51), None),  # undecided: either label will do
        (prediction(0.49), prediction(0.53), "negative instead of positive"),
        (prediction(float("nan")), prediction(0.53), "a probability is not a number"),
        (Prediction("7", None, None, False), Prediction("7", None, None, False), None),  # a free answer
        (Prediction("8", None, None, False), Prediction(None, None, None, False), "8 instead of None"),
        (prediction(0.9, truncated=True), prediction(0.9), "truncated by only one of the two"),
    ],
)
def test_what_counts_as_a_difference(actual: Prediction, expected: Prediction, problem: str | None) -> None:
    assert difference(actual, expected, 0.05) == problem
