"""The check of a runtime against PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cotd.errors import CotdError
from cotd.student import Student
from serve.runtime import RUNTIMES, check_parity, make_runtime


@pytest.fixture(scope="module")
def student(student_folder: Path) -> Student:
    return Student.load(student_folder, device="cpu")


@pytest.mark.parametrize("name", RUNTIMES)
def test_each_runtime_computes_what_pytorch_does(student: Student, name: str) -> None:
    logits, truncated = make_runtime(name, student).label_logits(["A warm and funny film.", "word " * 200])
    ours, flags = student.label_logits(["A warm and funny film.", "word " * 200])
    assert truncated == flags == [False, True]
    assert torch.as_tensor(logits).shape == (2, 2)
    assert torch.softmax(torch.as_tensor(logits), 1).numpy() == pytest.approx(torch.softmax(ours, 1).numpy(), abs=0.05)


class Biased:
    """A runtime whose logits are off by a constant for one label."""

    def __init__(self, student: Student, by: float):
        self.student = student
        self.by = by

    def label_logits(self, texts: Sequence[str]) -> tuple[Any, list[bool]]:
        logits, truncated = self.student.label_logits(texts)
        return logits + torch.tensor([self.by, 0.0]), truncated


def test_a_runtime_that_is_off_is_refused(student: Student) -> None:
    check_parity(Biased(student, 1e-5), student, 1e-3)
    with pytest.raises(CotdError, match=r"a probability is 0\.\d+ off, the tolerance is 0.001"):
        check_parity(Biased(student, 1.0), student, 1e-3)


def test_an_unknown_runtime(student: Student) -> None:
    with pytest.raises(CotdError, match=r"unknown runtime 'torsh'; known: torch.*Did you mean 'torch'\?"):
        make_runtime("torsh", student)
