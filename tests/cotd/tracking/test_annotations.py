"""What MLflow gets of an annotation run; `log_teacher` on a real store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cotd.study.config import load_config
from cotd.tracking.annotations import annotation_metrics
from cotd.tracking.runs import StudyTracker

SUMMARY: dict[str, Any] = {
    "teacher": {"model": "m", "accuracy": 0.8, "ci_low": 0.7, "ci_high": 0.9, "n": 100, "accuracy_on_train": 0.75},
    "examples": {"rows": 60, "quarantined": 2, "cut": 1},
    "annotations": {"rows": 50, "examples": 40, "usable": 47, "quarantined": {"filtered: length": 2, "no {label}: 100 %\n": 1}},
    "quality": {
        "labels": {
            "rows": 100, "kappa": 0.6, "kappa_low": 0.5, "kappa_high": 0.7, "roc_auc": 0.9, "calibration_error": 0.1,
            "reliability": [{"confidence": 0.9, "accuracy": 0.8, "rows": 100}],
        },
        "rationales": {"rows": 47, "names_its_label": 0.5, "near_duplicates": 0.0, "words": {"p5": 4.0, "p50": 9.0}},
    },
    "spent": {"cost": None},
}  # fmt: skip


def test_an_unmeasured_teacher_has_no_metrics_of_its_own() -> None:
    teacher = {"model": "m", "accuracy": None, "ci_low": None, "ci_high": None, "n": 0, "accuracy_on_train": None}
    quality = {"labels": {"rows": 0}, "rationales": {"rows": 0}}
    values = annotation_metrics(SUMMARY | {"teacher": teacher, "quality": quality})
    assert [name for name in values if name.startswith("teacher_")] == ["teacher_n"]
    assert not [name for name in values if name.startswith("rationales_")]


def test_the_studys_run_has_the_teachers_quality(
    write_study: Callable[..., Path], make_store: Callable[[Path], str], tmp_path: Path
) -> None:
    tracker = StudyTracker(load_config(write_study(), [f"tracking.uri={make_store(tmp_path / 'mlflow.db')}"]))
    page = tmp_path / "annotations.html"
    page.write_text("<p>annotations</p>")
    for _ in range(2):  # a sweep logs it again
        tracker.log_teacher(SUMMARY, page)
    run = tracker.client.get_run(tracker.parent_run)
    expected = {
        "teacher_accuracy": 0.8, "teacher_kappa": 0.6, "teacher_roc_auc": 0.9, "teacher_calibration_error": 0.1,
        "rationales_words_p50": 9.0,
        "annotations_usable": 47, "annotations_quarantined": 3, "examples_quarantined": 2, "examples_cut": 1,
        "quarantined/filtered length": 2, "quarantined/no label 100": 1,
    }  # fmt: skip
    assert {k: run.data.metrics.get(k) for k in expected} == expected
    assert run.data.tags["teacher"] == "m"
    artifacts = {a.path for a in tracker.client.list_artifacts(tracker.parent_run)}
    assert {"annotations.json", "annotations.html", "reliability.png"} <= artifacts
