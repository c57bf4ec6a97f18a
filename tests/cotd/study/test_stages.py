"""Stages of a file, and the student of one that teaches the next."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cotd.errors import CotdError
from cotd.study.config import load_config, load_stages
from cotd.study.stages import stage_study, teacher_folder, waits_for_teacher, write_best
from cotd.teachers.student.model import student_revision
from tests.pipelines.annotate.test_student_teacher import make_student
from tests.tasks import SENTIMENT

VARIANTS: dict[str, Any] = {
    "adapted": {"grid": {"method": ["finetune"]}},
    "students": {"teacher": {"model": "stage:adapted"}, "grid": {"method": ["distill", "distill_soft"]}},
}


def test_stages_are_the_variants_in_order_and_the_last_is_the_study(write_study: Callable[..., Path]) -> None:
    path = write_study(stages=["adapted", "students"], variants=VARIANTS)
    stages = load_stages(path, ["training.steps=7"])
    assert [(s.name, s.training.steps) for s in stages] == [("small-adapted", 7), ("small-students", 7)]
    assert load_config(path) == load_stages(path)[-1]
    assert [s.name for s in load_stages(path, ["variant=adapted"])] == ["small-adapted"]
    assert [s.name for s in load_stages(write_study())] == ["small"], "a study without stages is its only one"


@pytest.mark.parametrize(
    ("blocks", "overrides", "message"),
    [
        ({"stages": ["adapted", "student"]}, [], r"no variant 'student'\. Did you mean 'students'\?"),
        ({"stages": ["adapted", "adapted"]}, [], "named twice"),
        ({"stages": ["students", "adapted"]}, [], r"'stage:adapted' does not come before it\. Stages: students, adapted"),
        ({"stages": ["adapted"], "variant": "adapted"}, [], "mutually exclusive"),
        ({"stages": ["adapted", "students"]}, ["name=x"], "gives all stages one folder"),
        ({"stages": ["adapted"], "variants": None}, [], "this study has none"),
        ({"variant": "students", "variants": {"students": {"teacher": {"model": "stage:students"}}}}, [], "the stage itself"),
        ({"variants": None, "teacher": {"model": "stage:adapted"}}, [], "this study has none"),
    ],
)
def test_what_stages_cannot_be(write_study: Callable[..., Path], blocks: Any, overrides: list[str], message: str) -> None:
    blocks = {key: value for key, value in ({"variants": VARIANTS} | blocks).items() if value is not None}
    with pytest.raises(CotdError, match=message):
        load_stages(write_study(**blocks), overrides)


def test_the_best_student_of_a_stage_teaches_by_its_content_and_not_its_place(
    write_study: Callable[..., Path], tmp_path: Path
) -> None:
    adapted, students = load_stages(write_study(stages=["adapted", "students"], variants=VARIANTS))
    assert stage_study(students) is not None
    assert waits_for_teacher(students)
    assert not waits_for_teacher(adapted)
    with pytest.raises(CotdError, match="small-adapted has no finished student"):
        teacher_folder(students)
    make_student(tmp_path, SENTIMENT, "finetune")
    for trial in ("one", "two"):
        shutil.copytree(tmp_path / "student", adapted.directory / "trials" / trial / "student")
    write_best(adapted, {"trial_id": "one"})
    first = teacher_folder(students)
    write_best(adapted, {"trial_id": "two"})
    second = teacher_folder(students)
    assert first is not None
    assert second is not None
    assert (first.parent.name, second.parent.name) == ("one", "two")
    assert student_revision(first) == student_revision(second)
