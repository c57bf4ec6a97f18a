"""Texts and labels that a student's tokenizer cannot write down are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.students.vocabulary import (
    known_characters,
    surely_unread,
    unknown_characters,
    unread_warning,
    unwritable_labels,
)
from cotd.tasks.classification import Classification
from tests.tasks import SENTIMENT


@pytest.fixture(scope="module")
def tokenizer(tiny_t5: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_t5)


def test_characters_without_a_token_are_found(tokenizer: Any) -> None:
    texts = ["Tea & <cakes>", "茶很好喝", "Хороший чай", "A cup 🍵", ""]
    assert unknown_characters(tokenizer, texts) == ["", "茶很好喝", "Хорошийчай", "🍵", ""]


def test_an_endpoint_sees_it_by_the_characters_alone(tokenizer: Any) -> None:
    """Its worker has the tokenizer. Bytes stand for all characters."""
    texts = ["Tea & <cakes>", "茶很好喝", "Хороший чай", "A cup 🍵", "", "Ｔｅａ — “good”…", "Größe {1}"]
    known = known_characters(tokenizer)
    assert [surely_unread(text, known) for text in texts] == [bool(u) for u in unknown_characters(tokenizer, texts)]
    assert not surely_unread("茶", None)


def test_texts_that_are_not_read_are_counted(tokenizer: Any) -> None:
    assert unread_warning(tokenizer, ["A plain cup.", "A round pot."]) is None
    warning = unread_warning(tokenizer, ["A plain cup.", "茶"], "the student")
    assert warning is not None
    assert warning.startswith("1 of 2 texts have characters that the student cannot read (茶): 9.091 %")
    assert unread_warning(tokenizer, ["A plain cup.", "茶"], tolerated=0.1) is None


def test_labels_that_cannot_be_written_are_refused(tokenizer: Any) -> None:
    task = Classification(name="tea", labels=["甜", "苦", "sour"])
    problem = unwritable_labels(tokenizer, task, "this student")
    assert problem is not None
    assert "'甜', '苦': its vocabulary lacks" in problem
    spelled = Classification(name="tea", labels=["甜", "苦"], verbalizers={"甜": "sweet", "苦": "bitter"})
    assert unwritable_labels(tokenizer, spelled, "this student") is None


def test_texts_are_read_as_they_are_learned(tiny_t5: Path) -> None:
    student = Student(*load_base(str(tiny_t5)), SENTIMENT, {"writes_rationales": True, "max_target_tokens": 4})
    raw, clean = "Sweet &amp;amp; <br/>warm\u00a0 \n tea", "Sweet & warm tea"
    assert student.inputs([raw], None) == student.inputs([clean], None)
    assert student.predict([raw]) == student.predict([clean])
    assert student.explain([raw]) == student.explain([clean])
