"""A study's runs in MLflow, as a user finds them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from cotd.study.config import StudyConfig
from cotd.tracking.runs import StudyTracker, named_metrics, trial_params
from cotd.training.folder import TrialFolder
from cotd.utils.jsonl import read_rows
from pipelines.sweep.plan import Plan


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


def test_the_best_students_are_logged_as_models_and_the_champion_in_any_case(
    study: tuple[StudyConfig, Plan], tracker: StudyTracker
) -> None:
    _, plan = study
    tracker.config = tracker.config.model_copy(update={"tracking": tracker.config.tracking.model_copy(update={"models": 0})})
    trial = plan.trials[0]
    run = tracker.sync_trial(trial, plan.folder(trial))
    assert not tracker.client.get_run(run).outputs.model_outputs
    assert tracker.log_student(trial, plan.folder(trial)) == tracker.log_student(trial, plan.folder(trial))
    again = tracker.client.get_run(run)
    assert len(again.outputs.model_outputs) == 1
    assert again.info.status == "FINISHED"
    assert tracker._among_the_best({"trial_id": "new", "validation": {"accuracy": 1.0}}) is False
    tracker.config = study[0]
    assert tracker._among_the_best({"trial_id": "new", "validation": {"accuracy": 1.1}}) is True


def test_many_labels_and_long_words_fit_mlflow(study: tuple[StudyConfig, Plan], tracker: StudyTracker) -> None:
    trial = study[1].trials[0]
    labels = [f"can't / won't {i}?" for i in range(30)]
    task = {"name": "intents", "kind": "classification", "labels": labels, "instruction": "x" * 9000}
    params = trial_params(replace(trial, task=task))
    assert max(map(len, params.values())) <= 6000
    few = {f"recall_{label}": 0.5 for label in labels[:3]} | {"test_precision_a/b": 0.5, "accuracy": 0.5}
    tracker._log_metrics(tracker.parent_run, few)
    logged = tracker.client.get_run(tracker.parent_run).data.metrics
    assert logged["recall_can_t _ won_t 0_"] == 0.5
    assert "test_precision_a_b" in logged
    many = {f"{kind}_{label}": 0.5 for label in labels for kind in ("recall", "precision")} | {"macro_f1": 0.5}
    assert named_metrics(many) == {"macro_f1": 0.5}


def test_a_study_that_nobody_works_on_is_not_left_running(tracker: StudyTracker) -> None:
    assert tracker.client.get_run(tracker.parent_run).info.status == "FINISHED"
