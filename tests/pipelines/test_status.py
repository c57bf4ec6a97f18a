"""What a study's files say of it, as a sweep would see them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cotd.errors import CotdError
from cotd.study.config import StudyConfig, load_config
from cotd.utils.files import write_json
from pipelines.annotate.run import annotate
from pipelines.status import find_stages, status_lines, study_status
from pipelines.sweep.plan import Plan, plan_study
from pipelines.sweep.run import best_done
from tests.conftest import FakeTeacher
from tests.tiny_models import write_tiny

GRID = {"method": ["finetune", "cot_labelled"], "fraction": [0.5, 1.0], "size": ["tiny"], "seed": [0]}


@pytest.fixture
def study(write_study: Callable[..., Path], tiny_t5: Path) -> Callable[..., StudyConfig]:
    def make(*overrides: str, **blocks: Any) -> StudyConfig:
        sizes, teacher = {"tiny": str(tiny_t5)}, {"calibration": {"rows": 24}}
        return load_config(write_study(**{"grid": GRID, "sizes": sizes, "teacher": teacher} | blocks), list(overrides))

    return make


def start(config: StudyConfig) -> Plan:
    """Leaves what a sweep leaves when it starts."""
    plan = plan_study(config)
    for trial in plan.trials:
        plan.folder(trial).write_trial(trial, config.model_dump())
    return plan


def finish(plan: Plan, number: int, accuracy: float) -> str:
    """Leaves what a trained trial leaves; returns its title."""
    trial = plan.trials[number]
    plan.folder(trial).write_result({"validation": {"accuracy": accuracy}, "seconds": 1})
    return trial.title


def test_each_stage_leads_to_the_next(
    study: Callable[..., StudyConfig], teacher_double: FakeTeacher, embedded_student: Path
) -> None:
    config = study()
    status = study_status(config)
    assert (status["prepared"], status["annotated"], status["best"], status["next"]) == (None, None, None, "prepare")
    annotate(config, teacher_double.complete)
    plan = start(config)
    status = study_status(config)
    assert status["prepared"] == {"train": 24, "validation": 24, "test": 12}
    assert status["annotated"]["rows"] == 48
    assert status["trials"] == {"done": 0, "failed": 0, "pending": 4, "stopped early": 0}
    assert status["next"] == "sweep"
    finish(plan, 0, 0.6)
    title = finish(plan, 1, 0.8)
    plan.folder(plan.trials[2]).error.write_text("out of memory")
    status = study_status(config)
    assert status["trials"] == {"done": 2, "failed": 1, "pending": 1, "stopped early": 0}
    assert (status["best"]["title"], status["next"]) == (title, "sweep")
    lines = list(status_lines(status))
    assert "annotated  48 rows, teacher 100.0% on test" in lines
    assert f"trials     2 done, 1 failed, 1 pending; best by validation: {title}, 80.0%" in lines
    finish(plan, 2, 0.5)
    finish(plan, 3, 0.5)
    assert study_status(config)["next"] == "report"
    write_json(config.directory / "report.json", {})
    assert study_status(config)["next"] == "promote"
    write_json(config.directory / "champion.json", {"model_uri": "models:/cotd-student/1", "method": "cot_labelled"})
    status = study_status(config)
    assert status["next"] == "serve"
    assert "champion   models:/cotd-student/1 (cot_labelled)" in status_lines(status)
    assert [study_status(s) for s in find_stages(str(config.directory), [])] == [status], "by its folder, too"


def test_other_settings_are_not_done(study: Callable[..., StudyConfig]) -> None:
    only = {"grid": GRID | {"method": ["finetune"]}}
    plan = start(study(**only))
    finish(plan, 0, 0.6)
    assert study_status(study(**only))["trials"]["done"] == 1
    status = study_status(study("training.steps=7", "training.eval_every=7", **only))
    assert (status["trials"]["done"], status["trials"]["pending"], status["best"]) == (0, 2, None)
    status = study_status(study("data.train_rows=20", **only))
    assert (status["prepared"], status["trials"]["done"], status["next"]) == (None, 0, "prepare")


def test_of_equal_students_the_one_with_the_least_data_is_the_best(study: Callable[..., StudyConfig]) -> None:
    """As in `cotd promote`."""
    config = study(grid=GRID | {"method": ["finetune"]})
    plan = start(config)
    for number in range(len(plan.trials)):
        finish(plan, number, 0.6)
    least = min(plan.trials, key=lambda trial: trial.fraction)
    assert study_status(config)["best"] == best_done(plan)
    assert study_status(config)["best"]["title"] == least.title


def test_samples_that_a_search_gave_up(study: Callable[..., StudyConfig]) -> None:
    search = {
        "samples": 3, "space": {"learning_rate": {"loguniform": [1e-4, 1e-1]}, "dropout": {"uniform": [0, 0.5]}},
        "asha": {"grace_steps": 10, "reduction": 2},
    }  # fmt: skip
    grid = {"method": ["finetune"], "fraction": [1.0], "size": ["tiny"], "seed": [0]}
    config = study(search=search, grid=grid, training={"steps": 40, "eval_every": 10})
    plan = start(config)
    plan.folder(plan.trials[0]).write_pruned({"step": 10})
    finish(plan, 1, 0.6)
    assert study_status(config)["trials"] == {"done": 1, "failed": 0, "pending": 1, "stopped early": 1}


def test_students_of_other_kinds_are_found(study: Callable[..., StudyConfig], embedded_student: Path, tmp_path: Path) -> None:
    """Their settings follow from their kind, which is not looked up again."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_student, local_files_only=True)
    sizes = {"tiny": str(write_tiny("llama", tmp_path / "llama", tokenizer))}
    config = study(sizes=sizes, grid=GRID | {"method": ["finetune"], "fraction": [1.0]})
    finish(start(config), 0, 0.6)
    assert study_status(config)["trials"]["done"] == 1


def test_a_folder_without_trials_does_not_say_what_the_study_is(tmp_path: Path) -> None:
    with pytest.raises(CotdError, match="has no trials, which say what its study is"):
        find_stages(str(tmp_path), [])


def test_no_large_library_is_loaded(study: Callable[..., StudyConfig]) -> None:
    search = {"samples": 2, "space": {"learning_rate": {"loguniform": [1e-4, 1e-1]}}}
    config = study(search=search, grid=GRID | {"method": ["finetune"], "fraction": [1.0]})
    start(config)
    code = (
        "import sys; from pipelines.status import *; study_status(*find_stages(sys.argv[1], [])); "
        "print({'torch', 'ray', 'mlflow', 'transformers', 'vllm'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code, config.directory], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "set()\n"
