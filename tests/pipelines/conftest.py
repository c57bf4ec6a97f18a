"""What tests of several pipelines share."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

import cotd.teachers.teacher
from cotd.students.base_models import load_base
from cotd.students.student import Student
from tests.tasks import SENTIMENT

LOAD_ONCE = functools.cache(cotd.teachers.teacher.load_tokenizer)


@pytest.fixture(autouse=True)
def tokenizers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads each teacher's tokenizer once: it takes half a second, and some eighty annotation runs of these tests need one."""
    monkeypatch.setattr(cotd.teachers.teacher, "load_tokenizer", LOAD_ONCE)


@pytest.fixture(scope="session")
def student_folder(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that has learned nothing, and predicts labels."""
    folder = tmp_path_factory.mktemp("students") / "first"
    model, tokenizer = load_base(str(tiny_t5))
    Student(model, tokenizer, SENTIMENT, {"method": "finetune", "max_input_tokens": 64}).save(folder)
    return folder
