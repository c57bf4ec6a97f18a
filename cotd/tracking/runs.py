"""A study in MLflow: one parent run, and one nested run a trial."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import Any

from cotd.storage.tracking_store import find_experiment, friendly_errors, log_metrics, open_store
from cotd.storage.working_copy import copy_of
from cotd.study.config import StudyConfig
from cotd.tracking.annotations import annotation_metrics, reliability_figure
from cotd.tracking.datasets import StudyDatasets
from cotd.tracking.registry import Registry, log_student, logged_student
from cotd.tracking.system_metrics import read_samples
from cotd.training.folder import TrialFolder
from cotd.training.methods import METHODS
from cotd.training.trial import Trial

TRIAL_TAG = "cotd.trial_id"
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"


class StudyTracker:
    """A study's experiment: one parent run, and one nested run a trial.

    Everything it writes it looks up first, so that a sweep run again goes on in the same runs.

    Attributes:
        registry: the versions of the study's registered model.
    """

    def __init__(self, config: StudyConfig):
        self.config = config
        self.uri = config.tracking_uri()
        with friendly_errors(self.uri):
            self.client = open_store(self.uri)
            self.experiment_id = find_experiment(
                self.client,
                self.uri,
                config.tracking.experiment or config.name,
                config.local_storage,
                {NOTE_TAG: "Studies of cotd: a run a study, and in it a run a trial."},
            )
        self.registry = Registry(self.client, config.tracking.registered_model)
        self.datasets = StudyDatasets(config)
        self._runs: dict[str, str] = {}  # trial id → run id
        self._logged: dict[tuple[str, str], set[int]] = {}  # run id, metric → the steps that the run has

    @cached_property
    def context(self) -> dict[str, str]:
        """Who runs what from where, at which commit: the tags that MLflow itself gives to a run."""
        from mlflow.tracking.context.registry import resolve_tags

        return dict(resolve_tags())

    @cached_property
    def parent_run(self) -> str:
        """The id of the study's own run."""
        found = self.client.search_runs(
            [self.experiment_id], f"tags.`cotd.study` = '{self.config.name}' and tags.`cotd.kind` = 'study'", max_results=1
        )
        if found:
            return found[0].info.run_id
        tags = {**self.context, "cotd.study": self.config.name, "cotd.kind": "study"}
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=self.config.name)
        self.client.set_terminated(run.info.run_id)  # `start_study` opens it
        return run.info.run_id

    def trial_run(self, trial: Trial, started: int | None = None) -> str:
        """The id of a trial's run, made where there is none.

        Args:
            started: when a run that is made began, in milliseconds since 1970; None for now.
        """
        if trial.id not in self._runs:
            found = self._runs_of(trial)
            self._runs[trial.id] = found[0].info.run_id if found else self._make_run(trial, started)
        return self._runs[trial.id]

    def _make_run(self, trial: Trial, started: int | None) -> str:
        tags = {TRIAL_TAG: trial.id, PARENT_TAG: self.parent_run, "cotd.study": self.config.name, "cotd.kind": "trial"}
        tags |= {"method": trial.method, "size": trial.size, "fraction": f"{trial.fraction:g}", "seed": str(trial.seed)}
        tags |= {"task": trial.task, "source": self.config.data.where}
        if METHODS[trial.method].needs_annotations:
            tags["teacher"] = self.config.teacher.model
        run = self.client.create_run(self.experiment_id, started, {**self.context, **tags}, trial.title)
        return run.info.run_id

    def _log_params(self, run_id: str, trial: Trial) -> None:
        """Logs what the trial is, once: parameters cannot change, and names (of sizes, of paths) may."""
        from mlflow.entities import Param

        if not self.client.get_run(run_id).data.params:
            self.client.log_batch(run_id, params=[Param(k, v) for k, v in trial_params(trial).items()])

    def sync_curve(self, trial: Trial, folder: TrialFolder) -> None:
        """Logs the validation scores and the worker's load that the run does not have yet."""
        run_id = self.trial_run(trial)
        # Folders of before scores had a time: that of the file is near.
        stamp = folder.metrics.stat().st_mtime if folder.metrics.is_file() else 0
        curve = {int(point["step"]): {"time": stamp, **point} for point in folder.curve()}
        self._log_points(run_id, "validation_accuracy", curve)
        samples = dict(enumerate(read_samples(folder.system_metrics)))
        named = {step: {k if k == "time" else f"system/{k}": v for k, v in s.items()} for step, s in samples.items()}
        self._log_points(run_id, "system/cpu_utilization_percentage", named)

    def _log_points(self, run_id: str, key: str, points: dict[int, dict[str, float]]) -> None:
        """Logs the points that the run lacks, by step; `key` is a metric that each of them has, `time` is in seconds."""
        from mlflow.entities import Metric

        if not points:
            return
        if (run_id, key) not in self._logged:
            self._logged[run_id, key] = {m.step for m in self.client.get_metric_history(run_id, key)}
        logged = self._logged[run_id, key]
        new = {step: point for step, point in points.items() if step not in logged}
        metrics = [
            Metric(k, float(v), int(point["time"] * 1000), step)
            for step, point in new.items()
            for k, v in point.items()
            if k not in ("step", "time")
        ]
        log_metrics(self.client, run_id, metrics)
        logged |= set(new)

    def sync_trial(self, trial: Trial, folder: TrialFolder) -> str:
        """Brings a trial's run to what its folder says; returns the run's id. Does nothing where it is complete."""
        began, ended = folder.period()
        run_id = self.trial_run(trial, began)
        run = self.client.get_run(run_id)
        if run.info.status == "FINISHED" and "test_accuracy" in run.data.metrics:
            return run_id
        self._log_params(run_id, trial)
        self.sync_curve(trial, folder)
        if folder.done:
            self._log_result(run_id, trial, folder)
            self.client.set_terminated(run_id, "FINISHED", ended)
        elif folder.pruned:
            self.client.set_tag(run_id, "cotd.pruned", "true")
            self.client.set_terminated(run_id, "FINISHED", ended)
        elif folder.error.is_file():
            self.client.log_artifact(run_id, str(folder.error))
            self.client.set_terminated(run_id, "FAILED")
        return run_id

    def _log_result(self, run_id: str, trial: Trial, folder: TrialFolder) -> None:
        from mlflow.entities import Metric

        result = folder.result()
        self.client.log_inputs(run_id, self.datasets.inputs(trial))
        self.client.log_dict(run_id, folder.config(), "config.json")
        self.client.log_artifact(run_id, str(folder.predictions))
        if self.config.remote and not logged_student(self.client, run_id):
            copy_of(self.config.remote, self.config.directory).pull(f"trials/{trial.id}/student")
        if folder.student.is_dir() and not logged_student(self.client, run_id):
            log_student(run_id, folder.student, trial_params(trial), METHODS[trial.method].rationale_as_input)
        values = {f"best_validation_{k}": v for k, v in result["validation"].items()}
        kept = ("train_seconds", "seconds", "train_reviews", "train_pairs", "parameters", "best_step")
        values |= {k: result[k] for k in kept if k in result}
        # Last values, so at no step of the training: MLflow draws them as bars, and compares runs by them.
        stamp = folder.period()[1] or now()
        metrics = [Metric(k, float(v), stamp, 0) for k, v in values.items()]
        student, tested_on = logged_student(self.client, run_id), self.datasets.test_dataset(trial)
        about = {"model_id": student.removeprefix("models:/")} if student else {}
        about |= {"dataset_name": tested_on.name, "dataset_digest": tested_on.digest} if tested_on else {}
        metrics += [Metric(f"test_{k}", float(v), stamp, 0, **about) for k, v in result["test"].items()]
        log_metrics(self.client, run_id, metrics)
        self._note_best(run_id, trial, result, stamp)

    def _note_best(self, run_id: str, trial: Trial, result: dict[str, Any], stamp: int) -> None:
        """Names the best trial by validation on the study's own run."""
        from mlflow.entities import Metric, RunTag

        if result["validation"]["accuracy"] <= self._best:
            return
        self._best = float(result["validation"]["accuracy"])
        values = {"best_validation_accuracy": self._best, "test_accuracy_of_best": float(result["test"]["accuracy"])}
        tags = [RunTag("best_trial", trial.title), RunTag("best_trial_run", run_id)]
        self.client.log_batch(self.parent_run, metrics=[Metric(k, v, stamp, 0) for k, v in values.items()], tags=tags)

    @cached_property
    def _best(self) -> float:
        return self.client.get_run(self.parent_run).data.metrics.get("best_validation_accuracy", -1.0)

    def log_teacher(self, summary: dict[str, Any], page: Path | None = None) -> None:
        """The teacher's benchmark, the annotations' quality and their provenance, on the study's own run.

        Args:
            page: the annotations to read in a browser.
        """
        from mlflow.entities import Metric

        stamp = now()
        metrics = [Metric(k, v, stamp, 0) for k, v in annotation_metrics(summary).items()]
        self.client.log_batch(self.parent_run, metrics=metrics)
        self.client.set_tag(self.parent_run, "teacher", summary["teacher"]["model"])
        self.client.log_dict(self.parent_run, summary, "annotations.json")
        if points := (labels := summary["quality"]["labels"]).get("reliability"):
            self.client.log_figure(self.parent_run, reliability_figure(points, labels["calibration_error"]), "reliability.png")
        if page and page.is_file():
            self.client.log_artifact(self.parent_run, str(page))

    def start_study(self) -> None:
        """Marks the study's own run as being worked on, and logs the configuration that it is worked on with."""
        self.client.update_run(self.parent_run, status="RUNNING")
        self.client.log_dict(self.parent_run, self.config.model_dump(), "config.json")
        self.client.set_tag(self.parent_run, NOTE_TAG, describe_study(self.config))

    def end_study(self, status: str) -> None:
        """Ends the study's own run: FINISHED, FAILED (some trials did), or KILLED (stopped on the way)."""
        self.client.set_terminated(self.parent_run, status)

    def settle(self, trial: Trial, folder: TrialFolder) -> None:
        """Leaves no run open: what is done or failed is logged, what was stopped on the way is marked so."""
        if folder.done or folder.pruned or folder.error.is_file():
            self.sync_trial(trial, folder)
            return
        for run in self._runs_of(trial):
            if run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, "KILLED")

    def reopen(self, trial: Trial) -> None:
        """Marks a trial's run as being worked on, again after a stop; it begins now where there is none."""
        run_id = self.trial_run(trial)
        self._log_params(run_id, trial)
        self.client.update_run(run_id, status="RUNNING")

    def _runs_of(self, trial: Trial) -> list[Any]:
        return list(self.client.search_runs([self.experiment_id], f"tags.`{TRIAL_TAG}` = '{trial.id}'", max_results=1))


def trial_params(trial: Trial) -> dict[str, str]:
    """What a trial is, as MLflow's parameters: blocks are flattened (`training.steps`), what it has not is left out."""
    params: dict[str, str] = {}
    for key, value in trial.to_dict().items():
        values = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        params |= {k: str(v) for k, v in values.items() if v is not None}
    return params


def describe_study(config: StudyConfig) -> str:
    """The note on a study's run, in Markdown."""
    grid = "\n".join(f"- {key}: {', '.join(map(str, values))}" for key, values in config.grid.model_dump().items() if values)
    return (
        f"Reviews: `{config.data.where}`. Teacher: `{config.teacher.model}`.\n\n{grid}\n\n"
        "Runs are chosen by `best_validation_accuracy`; `test_accuracy` has its 95 % interval in `test_ci_low` and "
        "`test_ci_high`."
    )


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
