"""A study whose students read the teacher's rationales, from annotation to promotion; engine and Ray apart, the real path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cotd.cli.checks import check_student
from cotd.errors import CotdError
from cotd.students.student import Student
from cotd.study.config import StudyConfig, load_config
from cotd.training.train import train_trial
from pipelines.annotate.files import AnnotationFiles, read_annotations, read_rationales
from pipelines.annotate.run import annotate
from pipelines.annotate.summary import summary_lines
from pipelines.promote import promote
from pipelines.sweep.plan import plan_study
from serve.runtimes.registry import make_runtime


@pytest.fixture
def config(write_study: Callable[..., Path], tiny_t5: Path) -> StudyConfig:
    grid = {"method": ["rationale_input", "distill"], "fraction": [1.0], "size": ["tiny"], "seed": [0]}
    teacher = {"calibration": {"rows": 24}, "held_out_rationales": True}
    training = {"steps": 2, "batch_size": 8}
    return load_config(write_study(grid=grid, teacher=teacher, training=training, sizes={"tiny": str(tiny_t5)}))


def without(config: StudyConfig) -> StudyConfig:
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"held_out_rationales": False})})


def test_held_out_rationales_are_asked_for_and_change_nothing_else(config: StudyConfig, teacher_double: Any) -> None:
    plain = annotate(without(config), teacher_double.complete)
    with pytest.raises(CotdError, match=r"'rationale_input' reads .* none for 24 of 24 validation examples and 12 of 12 test"):
        plan_study(config)
    before, asked = read_annotations(config), len(teacher_double.asked)
    teacher_double.write = lambda request: " No." if "number 24." in request.prompt else " The words are telling."
    summary = annotate(config, teacher_double.complete)
    assert len(teacher_double.asked) - asked == 36, "24 validation and 12 test examples, whose labels were known"
    assert before is not None
    assert summary["digest"] == plain["digest"]
    assert "35 usable rationales of 36 validation and test examples" in list(
        summary_lines(summary, Path("annotations.parquet"))
    )
    rationales = read_rationales(AnnotationFiles.of(config).held_out_rationales)
    assert rationales is not None
    assert len(rationales) == 36
    # One that is too short to be a rationale is left out, and its example is not.
    assert sorted(rationales.values()) == ["", *["The words are telling."] * 35]
    trials = plan_study(config).trials
    annotate(without(config), teacher_double.complete)
    assert not AnnotationFiles.of(config).held_out_rationales.exists(), "of a run that did not ask for them"
    alone = config.model_copy(update={"grid": config.grid.model_copy(update={"method": ["distill"]})})
    assert {t.id for t in plan_study(alone).trials} < {t.id for t in trials}


def test_a_student_that_reads_rationales_is_trained_and_neither_promoted_nor_served(
    config: StudyConfig, teacher_double: Any, tmp_path: Path
) -> None:
    annotate(config, teacher_double.complete)
    plan = plan_study(config)
    (trial,) = (t for t in plan.trials if t.method == "rationale_input")
    folder = plan.folder(trial)
    folder.write_trial(trial, config.model_dump())
    examples, annotations = pd.read_parquet(plan.examples), pd.read_parquet(plan.annotations)  # type: ignore[arg-type]
    result = train_trial(trial, folder, examples, annotations, teacher_rationales=read_rationales(plan.held_out_rationales))
    assert result["test"]["n"] == 12
    with pytest.raises(
        CotdError, match=r"no finished distilled trial .*Students of rationale_input read the teacher's rationale"
    ):
        promote(config)
    with pytest.raises(CotdError, match=r"'rationale_input': it needs the teacher's rationale"):
        check_student(str(folder.student), f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(CotdError, match="cannot be served"):
        make_runtime("torch", Student.load(folder.student, device="cpu"))
