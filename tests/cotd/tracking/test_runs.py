"""MLflow as a user finds it: a study's runs, their inputs, their students, and the registry's versions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.study.config import StudyConfig, TrackingConfig, load_config
from cotd.tracking.datasets import CONTEXT
from cotd.tracking.runs import StudyTracker
from cotd.tracking.system_metrics import sample_load
from cotd.training.folder import TrialFolder
from cotd.training.train import train_trial
from cotd.utils.jsonl import read_rows
from pipelines.promote import promote
from pipelines.sweep.plan import Plan, plan_study

TRAINING = {"optimizer": "adamw", "steps": 4, "batch_size": 8, "eval_every": 2, "warmup_steps": 0}


@pytest.fixture(scope="module")
def study(tiny_t5: Path, review_rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, Plan]:
    """Two trials of gold finetuning, trained as a sweep's worker trains them, and not in MLflow yet."""
    folder = tmp_path_factory.mktemp("study")
    review_rows.to_csv(folder / "reviews.csv", index=False)
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
            train_trial(trial, place, pd.read_parquet(plan.reviews), None, plan.provenance)
    return config, plan


@pytest.fixture(scope="module")
def database(make_store: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all tests, with an experiment each."""
    return make_store(tmp_path_factory.mktemp("mlflow") / "mlflow.db")


@pytest.fixture
def tracker(study: tuple[StudyConfig, Plan], database: str, request: pytest.FixtureRequest) -> StudyTracker:
    """The study's, in an experiment of the test's own."""
    tracking = {"uri": database, "experiment": request.node.name, "registered_model": request.node.name}
    return StudyTracker(study[0].model_copy(update={"tracking": TrackingConfig(**tracking)}))


def test_a_trials_run_holds_what_its_folder_does(study: tuple[StudyConfig, Plan], tracker: StudyTracker) -> None:
    _, plan = study
    tracker.start_study()
    before = time.time()
    half, whole = sorted(plan.trials, key=lambda t: t.fraction)
    run_id = tracker.sync_trial(half, plan.folder(half))
    tracker.sync_trial(whole, plan.folder(whole))
    tracker.end_study("FINISHED")
    run = tracker.client.get_run(run_id)
    result = plan.folder(half).result()
    assert run.info.run_name == "finetune · 50 % · mine · seed 1"
    assert run.data.tags["mlflow.parentRunId"] == tracker.parent_run
    assert {k: run.data.tags[k] for k in ("method", "fraction", "size", "seed")} == {
        "method": "finetune", "fraction": "0.5", "size": "mine", "seed": "1"
    }  # fmt: skip
    assert run.data.params["training.steps"] == "4"
    assert run.info.end_time - run.info.start_time == pytest.approx(result["seconds"] * 1000, abs=5)
    for key in ("accuracy", "ci_low", "ci_high"):
        assert run.data.metrics[f"test_{key}"] == result["test"][key]
        assert run.data.metrics[f"best_validation_{key}"] == result["validation"][key]
    curve = tracker.client.get_metric_history(run_id, "validation_accuracy")
    assert [m.step for m in curve] == [2, 4]
    assert before - 300 < curve[0].timestamp / 1000 < curve[1].timestamp / 1000 < before
    load = tracker.client.get_metric_history(run_id, "system/process_memory_usage_megabytes")
    assert len(load) == len(read_rows(plan.folder(half).system_metrics)) >= 2
    assert all(50 < m.value < 50_000 for m in load)
    parent = tracker.client.get_run(tracker.parent_run)
    assert parent.data.tags["best_trial"] in {t.title for t in plan.trials}
    assert parent.data.metrics["best_validation_accuracy"] == max(
        plan.folder(t).result()["validation"]["accuracy"] for t in plan.trials
    )


def test_its_inputs_are_the_very_rows(study: tuple[StudyConfig, Plan], tracker: StudyTracker) -> None:
    config, plan = study
    found: dict[float, dict[str, Any]] = {}
    for trial in plan.trials:
        run = tracker.client.get_run(tracker.sync_trial(trial, plan.folder(trial)))
        found[trial.fraction] = {tag.value: i for i in run.inputs.dataset_inputs for tag in i.tags if tag.key == CONTEXT}
    assert set(found[0.5]) == {"train", "validation", "test"}
    for fraction, rows in ((0.5, 12), (1.0, 24)):
        train = found[fraction]["train"].dataset
        profile = json.loads(train.profile)
        assert profile["rows"] == sum(profile["labels"].values()) == rows
        assert profile["source"] == config.data.source
        assert "text" in train.schema
        loaded = Path(mlflow.data.get_source(found[fraction]["train"]).load())
        assert len(pd.read_parquet(loaded)) == 60
    assert found[0.5]["train"].dataset.digest != found[1.0]["train"].dataset.digest
    assert found[0.5]["test"].dataset.digest == found[1.0]["test"].dataset.digest


def test_logging_again_changes_nothing(study: tuple[StudyConfig, Plan], tracker: StudyTracker) -> None:
    _, plan = study
    (trial, other), folder = plan.trials, plan.folder(plan.trials[0])
    tracker.reopen(trial)
    tracker.sync_curve(trial, folder)  # as while it trains
    run_id = tracker.sync_trial(trial, folder)
    again = StudyTracker(tracker.config)  # another process
    assert again.sync_trial(trial, folder) == run_id
    again.client.update_run(run_id, status="RUNNING")  # killed before it was marked as done
    assert again.sync_trial(trial, folder) == run_id
    assert [m.step for m in again.client.get_metric_history(run_id, "validation_accuracy")] == [2, 4]
    assert len(again.client.get_metric_history(run_id, "test_accuracy")) == 1
    assert len(again.client.get_run(run_id).outputs.model_outputs) == 1
    again.reopen(other)
    again.settle(other, TrialFolder(folder.path / "nowhere"))
    assert {r.info.status for r in again.client.search_runs([again.experiment_id])} == {"FINISHED", "KILLED"}


def test_versions_say_why_and_the_student_predicts(study: tuple[StudyConfig, Plan], tracker: StudyTracker) -> None:
    _, plan = study
    outcome = promote(tracker.config, all_methods=True)
    assert outcome.moved
    name = tracker.config.tracking.registered_model
    version = tracker.registry.champion()
    best = max((plan.folder(t).result() for t in plan.trials), key=lambda r: r["validation"]["accuracy"])
    assert version.tags["validation_accuracy"] == f"{best['validation']['accuracy']:.4f}"
    assert version.tags["chosen_from"] == "2"
    assert f"| test | {plan_test(plan, version.tags['trial_id'])['accuracy']:.1%} |" in version.description
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    texts = ["A warm and funny film.", "Dull."]
    listed, framed = model.predict(texts), model.predict(pd.DataFrame({"text": texts}))
    pd.testing.assert_frame_equal(listed, framed)
    assert list(listed.columns) == ["label", "score", "truncated"] == model.metadata.signature.outputs.input_names()
    assert model.input_example is not None
    assert len(model.predict(model.input_example)) == 1
    with pytest.raises(Exception, match="no column 'text'"):
        model.predict(pd.DataFrame({"id": ["r1"]}))
    logged = tracker.client.get_logged_model(model.metadata.model_id)
    assert {m.key: m.value for m in logged.metrics}["test_accuracy"] == float(
        plan_test(plan, version.tags["trial_id"])["accuracy"]
    )
    assert logged.params["training.steps"] == "4"


def plan_test(plan: Plan, trial_id: str) -> dict[str, Any]:
    return plan.folder_of(trial_id).result()["test"]


@given(st.lists(st.floats(0, 100), max_size=5), st.text(alphabet='{"a: 1', max_size=8))
def test_samples_survive_a_kill(tmp_path_factory: pytest.TempPathFactory, values: list[float], half: str) -> None:
    path = tmp_path_factory.getbasetemp() / "samples.jsonl"
    whole = [{"time": float(i), "cpu_utilization_percentage": v} for i, v in enumerate(values)]
    path.write_text("".join(json.dumps(s) + "\n" for s in whole) + half)
    assert read_rows(path) == whole


def test_sampling_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sample_load(tmp_path / "missing" / "load.jsonl", interval=0.01):
        time.sleep(0.05)
    with monkeypatch.context() as patch, sample_load(tmp_path / "broken.jsonl", interval=0.01):
        patch.setattr("cotd.tracking.system_metrics.gpu_load", lambda: 1 / 0)  # as a driver that has gone fails
    with pytest.raises(ZeroDivisionError), sample_load(tmp_path / "load.jsonl", interval=10):
        1 / 0  # noqa: B018
    assert len(read_rows(tmp_path / "load.jsonl")) == 1  # however short


def test_a_study_that_nobody_works_on_is_not_left_running(tracker: StudyTracker) -> None:
    assert tracker.client.get_run(tracker.parent_run).info.status == "FINISHED"
