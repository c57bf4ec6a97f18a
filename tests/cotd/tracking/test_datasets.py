from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from cotd.study.config import StudyConfig
from cotd.tracking.datasets import CONTEXT
from cotd.tracking.runs import StudyTracker
from pipelines.sweep.plan import Plan


def test_its_inputs_are_the_very_rows(study: tuple[StudyConfig, Plan], tracker: StudyTracker) -> None:
    config, plan = study
    inputs: dict[float, dict[str, Any]] = {}
    for trial in plan.trials:
        run = tracker.client.get_run(tracker.sync_trial(trial, plan.folder(trial)))
        inputs[trial.fraction] = {tag.value: i for i in run.inputs.dataset_inputs for tag in i.tags if tag.key == CONTEXT}
    assert set(inputs[0.5]) == {"train", "validation", "test"}
    for fraction, rows in ((0.5, 12), (1.0, 24)):
        train = inputs[fraction]["train"].dataset
        profile = json.loads(train.profile)
        assert profile["rows"] == sum(profile["labels"].values()) == rows
        assert profile["source"] == config.data.source
        assert "text" in train.schema
        loaded = Path(mlflow.data.get_source(inputs[fraction]["train"]).load())
        assert len(pd.read_parquet(loaded)) == 60
    assert inputs[0.5]["train"].dataset.digest != inputs[1.0]["train"].dataset.digest
    assert inputs[0.5]["test"].dataset.digest == inputs[1.0]["test"].dataset.digest
