"""Two stages on the real path, but for vLLM: a causal student is trained, and teaches the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cotd.students.student import Student
from cotd.study.config import load_stages
from cotd.study.stages import teacher_folder
from pipelines.annotate.run import annotate
from pipelines.cluster.session import ray_session
from pipelines.report.run import report
from pipelines.stages import run_stages
from pipelines.status import stages_status
from pipelines.sweep.run import sweep
from tests.pipelines.annotate.test_student_teacher import StudentEngine
from tests.tiny_models import write_tiny


@pytest.mark.integration
def test_the_student_of_a_stage_teaches_the_next_and_nothing_is_done_twice(
    write_study: Callable[..., Path], tmp_path: Path, tiny_t5: Path, make_store: Callable[[Path], str]
) -> None:
    sizes = {"mini": str(write_tiny("llama", tmp_path / "llama", AutoTokenizer.from_pretrained(tiny_t5))), "tiny": str(tiny_t5)}
    path = write_study(
        stages=["adapted", "students"], sizes=sizes, grid={"fraction": [1.0], "seed": [0]}, resources={"cpus": 0.5},
        training={"steps": 2, "eval_every": 2, "batch_size": 8, "max_input_tokens": 48, "max_target_tokens": 8},
        tracking={"uri": make_store(tmp_path / "mlflow.db")},
        variants={
            "adapted": {"grid": {"method": ["finetune"], "size": ["mini"]}},
            "students": {"teacher": {"model": "stage:adapted"}, "grid": {"method": ["distill_soft"], "size": ["tiny"]}},
        },
    )  # fmt: skip
    adapted, students = stages = load_stages(path)
    with ray_session(num_cpus=2):
        best = sweep(adapted)["best"]
        assert [status["next"] for status in stages_status(stages)] == ["sweep", "sweep"]
        teacher = teacher_folder(students)
        assert teacher is not None
        annotate(students, StudentEngine(Student.load(teacher)).complete)
        assert [outcome["trained"] for outcome in run_stages(stages).values()] == [0, 1]
        assert [outcome["trained"] for outcome in run_stages(stages).values()] == [0, 0]

    content: dict[str, Any] = report(students)
    assert [(r["name"], r["taught_by"]) for r in content["ladder"]] == [
        ("mini, finetune", "gold labels"),
        ("tiny, distill_soft", "mini, finetune"),
    ]
    assert all(rung["n"] == 12 and rung["parameters"] and rung["weights_bytes"] for rung in content["ladder"])
    assert "## The ladder" in (students.directory / "report.md").read_text()
    card = Student.load(students.directory / "trials" / content["trials"][0]["trial_id"] / "student").card
    assert (card["study"], card["teacher"]["student"]["trial_id"]) == ("small-students", best["trial_id"])

    import mlflow

    client = mlflow.MlflowClient(students.tracking_uri(), students.tracking_uri())
    tags = client.get_run(content["trials"][0]["mlflow_run_id"]).data.tags
    assert (tags["teacher"], tags["taught_by"], tags["taught_by_study"]) == ("stage:adapted", best["trial_id"], "small-adapted")
    assert client.get_run(tags["taught_by_run"]).data.tags["cotd.trial_id"] == best["trial_id"]
