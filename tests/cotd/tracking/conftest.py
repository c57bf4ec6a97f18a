"""A trained study that is not in MLflow yet, and a tracking store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cotd.study.config import StudyConfig, TrackingConfig, load_config
from cotd.tracking.runs import StudyTracker
from cotd.tracking.system_metrics import sample_load
from cotd.training.train import train_trial
from pipelines.sweep.plan import Plan, plan_study

TRAINING = {"optimizer": "adamw", "steps": 4, "batch_size": 8, "eval_every": 2, "warmup_steps": 0}


@pytest.fixture(scope="session")
def study(tiny_t5: Path, example_rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, Plan]:
    """Two trials of gold finetuning, trained as a sweep's worker trains them, and not in MLflow yet."""
    folder = tmp_path_factory.mktemp("study")
    example_rows.to_csv(folder / "reviews.csv", index=False)
    plain = {
        "name": "small", "data": {"source": str(folder / "reviews.csv"), "columns": {"split": "split"}},
        "grid": {"method": ["finetune"], "fraction": [0.5, 1.0], "size": ["mine"], "seed": [1]}, "sizes": {"mine": str(tiny_t5)},
        "training": TRAINING, "storage": str(folder / "runs"),
    }  # fmt: skip
    (folder / "study.yaml").write_text(json.dumps(plain))
    config = load_config(folder / "study.yaml")
    plan = plan_study(config)
    for trial in plan.trials:
        place = plan.folder(trial)
        place.write_trial(trial, config.model_dump())
        with sample_load(place.system_metrics, interval=0.05):
            train_trial(trial, place, pd.read_parquet(plan.examples), None, plan.provenance)
    return config, plan


@pytest.fixture(scope="session")
def database(make_store: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all tests, with an experiment each."""
    return make_store(tmp_path_factory.mktemp("mlflow") / "mlflow.db")


@pytest.fixture
def tracker(study: tuple[StudyConfig, Plan], database: str, request: pytest.FixtureRequest) -> StudyTracker:
    """The study's, in an experiment of the test's own."""
    tracking = {"uri": database, "experiment": request.node.name, "registered_model": request.node.name}
    return StudyTracker(study[0].model_copy(update={"tracking": TrackingConfig(**tracking)}))
