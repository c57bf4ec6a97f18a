"""A student and a study to push, and the stand-in hub to push them to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cotd.students.student import Student
from cotd.students.validated import Validated
from cotd.study.config import StudyConfig, load_config
from pipelines.annotate.run import annotate
from pipelines.prepare import prepare
from tests.cotd.conftest import hub, stopped_hub

__all__ = ["hub", "stopped_hub"]


def metrics(accuracy: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "ci_low": 0.7, "ci_high": 0.9, "n": 1000, "macro_f1": 0.8, "roc_auc": 0.85}


@pytest.fixture(scope="session")
def trained(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose card says what a sweep's says; its base, data and teacher are at places of somebody's machine."""
    student = Student.load(student_folder, device="cpu")
    student.seen = {"train": np.array([1, 2], np.uint64), "validation": np.array([3], np.uint64)}
    student.validated = Validated(np.array([3], np.uint64), np.array([0.75]), np.array([True]))
    student.card |= {
        "method": "cot_labelled", "writes_rationales": True, "max_target_tokens": 8, "fraction": 0.1, "seed": 3,
        "base": "/home/somebody/models/t5", "data": {"source": {"train": "/home/somebody/reviews.csv", "test": "test.csv"}},
        "teacher": {"model": "/home/somebody/teacher", "strategy": "score_then_explain", "accuracy": 0.8765, "n": 500},
        "metrics": {"validation": metrics(0.81), "test": metrics(0.8234)},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("trained") / "student"
    student.save(folder)
    return folder


@pytest.fixture
def annotated(write_study: Callable[..., Path], teacher_double: Any, embedded_student: Path) -> StudyConfig:
    """A study of 60 texts with annotations of 24, two of them quarantined, and prepared examples."""
    teacher_double.fails = lambda prompt: prompt.endswith("Reason:") and "number 3." in prompt
    config = load_config(write_study(teacher={"calibration": {"rows": 24}}))
    annotate(config, teacher_double.complete)
    prepare(config)
    return config


@pytest.fixture
def copied(trained: Path, annotated: StudyConfig, tmp_path: Path) -> Path:
    """A folder that holds `student` and `runs/small`, for a child process to work in."""
    home = tmp_path / "child"
    shutil.copytree(trained, home / "student")
    shutil.copytree(annotated.directory, home / "runs" / "small")
    return home
