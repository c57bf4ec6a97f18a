"""A study in MLflow: one parent run, and one nested run a trial."""

from __future__ import annotations

import heapq
import re
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from cotd.errors import CotdError
from cotd.evaluation.cascade import Point
from cotd.storage.tracking_store import SQLITE, friendly_errors, open_store
from cotd.storage.working_copy import copy_of
from cotd.students.base_models import CARD
from cotd.study.config import StudyConfig
from cotd.study.stages import teacher_folder
from cotd.tasks.registry import parse_task
from cotd.tracking.annotations import annotation_metrics, reliability_figure
from cotd.tracking.datasets import StudyDatasets
from cotd.tracking.registry import Registry, log_student, logged_student
from cotd.training.folder import TrialFolder, merit
from cotd.training.methods import METHODS
from cotd.training.trial import Trial
from cotd.utils.files import read_json
from cotd.utils.iteration import batched
from cotd.utils.jsonl import read_rows

TRIAL_TAG = "cotd.trial_id"
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
METRICS_A_CALL, PARAMS_A_CALL = 1000, 100  # the most that MLflow takes
LONGEST_PARAM, LONGEST_NAME = 6000, 250
# Of more labels than this no metric of its own is logged for each: result.json and the report have them.
MOST_LABELS = 20
OTHER = re.compile(r"[^\w. -]")  # what a metric's name cannot have, and a label may
OF_A_LABEL = re.compile(r"(?:^|_)(?:precision|recall)_")
RESULT_METRICS = ("train_seconds", "seconds", "train_examples", "train_pairs", "parameters", "best_step")


class StudyTracker:
    """A study's experiment: one parent run, and one nested run a trial.

    Everything it writes it looks up first: a sweep run again continues the same runs.

    Attributes:
        registry: the versions of the study's registered model.
    """

    def __init__(self, config: StudyConfig):
        self.config = config
        self.uri = config.tracking_uri()
        with friendly_errors(self.uri):
            self.client = open_store(self.uri)
            self.experiment_id = self._find_experiment()
        self.registry = Registry(self.client, config.tracking.registered_model)
        self.datasets = StudyDatasets(config)
        self._runs: dict[str, str] = {}  # trial id → run id
        self._logged: dict[str, dict[str, set[int]]] = {}  # run id → metric → the steps that the run has, until it ends

    def _find_experiment(self) -> str:
        """The id of the study's experiment, which is created if there is none."""
        name = self.config.tracking.experiment or self.config.name
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            if experiment.lifecycle_stage != "active":
                raise CotdError(f"the MLflow experiment '{name}' is deleted. Restore it, or set tracking.experiment.")
            return experiment.experiment_id
        # A database on this machine does not say where files go; a server does.
        local = self.uri.startswith((SQLITE, "/"))
        artifacts = (self.config.local_storage / "mlflow-artifacts" / name).as_uri() if local else None
        tags = {
            "mlflow.experimentKind": "custom_model_development",  # else MLflow's page takes it for prompts and traces, and asks
            NOTE_TAG: "Studies of cotd: one run a study, with a nested run a trial.",
        }
        return self.client.create_experiment(name, artifact_location=artifacts, tags=tags)

    @cached_property
    def context(self) -> dict[str, str]:
        """Who runs what from where, at which commit: the tags that MLflow itself gives to a run."""
        from mlflow.tracking.context.registry import resolve_tags

        return dict(resolve_tags())

    @cached_property
    def parent_run(self) -> str:
        """The id of the study's own run."""
        query = f"tags.`cotd.study` = '{self.config.name}' and tags.`cotd.kind` = 'study'"
        if runs := self.client.search_runs([self.experiment_id], query, max_results=1):
            return runs[0].info.run_id
        tags = {**self.context, "cotd.study": self.config.name, "cotd.kind": "study"}
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=self.config.name)
        self.client.set_terminated(run.info.run_id)  # `start_study` opens it
        return run.info.run_id

    def start_study(self) -> None:
        """Marks the study's own run as running, and logs the configuration."""
        self.client.update_run(self.parent_run, status="RUNNING")
        self.client.log_dict(self.parent_run, self.config.model_dump(), "config.json")
        self.client.set_tag(self.parent_run, NOTE_TAG, describe_study(self.config))

    def end_study(self, status: str) -> None:
        """Ends the study's own run: FINISHED, FAILED (some trials did), or KILLED (stopped before the end)."""
        self.client.set_terminated(self.parent_run, status)

    def log_teacher(self, summary: dict[str, Any], page: Path | None = None) -> None:
        """Logs the teacher's benchmark, the annotations' quality and their provenance on the study's own run.

        Args:
            page: the annotations to read in a browser.
        """
        self._log_metrics(self.parent_run, annotation_metrics(summary))
        for key, value in {"teacher": summary["teacher"]["model"], **self.taught_by}.items():
            self.client.set_tag(self.parent_run, key, value)
        self.client.log_dict(self.parent_run, summary, "annotations.json")
        if points := (labels := summary["quality"]["labels"]).get("reliability"):
            self.client.log_figure(self.parent_run, reliability_figure(points, labels["calibration_error"]), "reliability.png")
        if page and page.is_file():
            self.client.log_artifact(self.parent_run, str(page))

    def trial_run(self, trial: Trial, started: int | None = None) -> str:
        """The id of a trial's run, which is created if there is none.

        Args:
            started: when a run that is created began, in milliseconds since 1970; None for now.
        """
        if trial.id not in self._runs:
            run = self._find_run(trial)
            self._runs[trial.id] = run.info.run_id if run else self._create_run(trial, started)
        return self._runs[trial.id]

    def _find_run(self, trial: Trial) -> Any | None:
        return next(
            iter(self.client.search_runs([self.experiment_id], f"tags.`{TRIAL_TAG}` = '{trial.id}'", max_results=1)), None
        )

    def _create_run(self, trial: Trial, started: int | None) -> str:
        tags = {TRIAL_TAG: trial.id, PARENT_TAG: self.parent_run, "cotd.study": self.config.name, "cotd.kind": "trial"}
        tags |= {"method": trial.method, "size": trial.size, "fraction": f"{trial.fraction:g}", "seed": str(trial.seed)}
        tags |= {"task": trial.task["name"], "source": self.config.data.source_name}
        if METHODS[trial.method].needs_annotations:
            tags |= {"teacher": self.config.teacher.model, **self.taught_by}
        run = self.client.create_run(self.experiment_id, started, {**self.context, **tags}, trial.title)
        return run.info.run_id

    @cached_property
    def taught_by(self) -> dict[str, str]:
        """Tags that name the teacher's trial, and its run if the store has it; none if the teacher is no student of cotd."""
        folder = teacher_folder(self.config)
        card = read_json(folder / CARD) if folder else {}
        if not card.get("trial_id"):
            return {}
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        runs = self.client.search_runs(experiments, f"tags.`{TRIAL_TAG}` = '{card['trial_id']}'", max_results=1)
        tags = {"taught_by": card["trial_id"], "taught_by_study": card.get("study") or ""}
        return tags | ({"taught_by_run": runs[0].info.run_id} if runs else {})

    def reopen(self, trial: Trial) -> None:
        """Marks a trial's run as running, also after a stop; it is created if there is none."""
        run_id = self.trial_run(trial)
        self._log_params(run_id, trial)
        self.client.update_run(run_id, status="RUNNING")

    def sync_curve(self, trial: Trial, folder: TrialFolder) -> None:
        """Logs the validation scores and the worker's load that the run does not have yet."""
        run_id = self.trial_run(trial)
        self._log_points(run_id, "validation_accuracy", {int(point["step"]): point for point in folder.curve()})
        samples = enumerate(row for row in read_rows(folder.system_metrics) if "time" in row)
        load = {step: {k if k == "time" else f"system/{k}": v for k, v in sample.items()} for step, sample in samples}
        self._log_points(run_id, "system/cpu_utilization_percentage", load)

    def sync_trial(self, trial: Trial, folder: TrialFolder) -> str:
        """Brings a trial's run to what its folder holds; returns the run's id. Does nothing if it is complete."""
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
        self._logged.pop(run_id, None)
        return run_id

    def settle(self, trial: Trial, folder: TrialFolder) -> None:
        """Leaves no run open: a trial that is done or failed is logged, one that was stopped is marked so."""
        if folder.done or folder.pruned or folder.error.is_file():
            self.sync_trial(trial, folder)
        elif (run := self._find_run(trial)) and run.info.status == "RUNNING":
            self.client.set_terminated(run.info.run_id, "KILLED")

    def _log_params(self, run_id: str, trial: Trial) -> None:
        """Logs what the trial is, once: parameters cannot change, and names (of sizes, of paths) may."""
        from mlflow.entities import Param

        if not self.client.get_run(run_id).data.params:
            for part in batched((Param(k, v) for k, v in trial_params(trial).items()), PARAMS_A_CALL):
                self.client.log_batch(run_id, params=part)

    def _log_points(self, run_id: str, key: str, points: dict[int, dict[str, float]]) -> None:
        """Logs the points that the run lacks, by step; `key` is a metric that each of them has, `time` is in seconds."""
        from mlflow.entities import Metric

        if not points:
            return
        of_run = self._logged.setdefault(run_id, {})
        if key not in of_run:
            of_run[key] = {m.step for m in self.client.get_metric_history(run_id, key)}
        logged = of_run[key]
        metrics = [
            Metric(k, float(v), int(point["time"] * 1000), step)
            for step, point in points.items()
            for k, v in point.items()
            if step not in logged and k not in ("step", "time")
        ]
        for part in batched(metrics, METRICS_A_CALL):  # those that the run has already, to the millisecond, are not doubled
            self.client.log_batch(run_id, metrics=part)
        logged.update(points)

    def _log_metrics(self, run_id: str, values: dict[str, float], stamp: int | None = None, **about: str) -> None:
        """Logs last values, at no step of the training: MLflow draws them as bars, and compares runs by them.

        Args:
            stamp: milliseconds since 1970; None for now.
            about: the model and dataset that the values are of, as MLflow's Metric takes them.
        """
        from mlflow.entities import Metric

        stamp = stamp or int(time.time() * 1000)
        metrics = [Metric(k, float(v), stamp, 0, **about) for k, v in named_metrics(values).items()]
        for part in batched(metrics, METRICS_A_CALL):
            self.client.log_batch(run_id, metrics=part)

    def _log_result(self, run_id: str, trial: Trial, folder: TrialFolder) -> None:
        result, (_, stamp) = folder.result(), folder.period()
        self.client.log_inputs(run_id, self.datasets.inputs(trial))
        self.client.log_dict(run_id, folder.config(), "config.json")
        self.client.log_artifact(run_id, str(folder.predictions))
        if curve := result.get("risk_coverage"):
            self.client.log_dict(run_id, {"columns": list(Point._fields), "data": curve}, "risk_coverage.json")
        student = self.log_student(trial, folder) if self._among_the_best(result) else logged_student(self.client, run_id)
        values = {f"best_validation_{k}": v for k, v in result["validation"].items()}
        self._log_metrics(run_id, values | {k: result[k] for k in RESULT_METRICS if k in result}, stamp)
        about = {"model_id": student.removeprefix("models:/")} if student else {}
        if (tested_on := self.datasets.test_dataset(trial)) is not None:
            about |= {"dataset_name": tested_on.name, "dataset_digest": tested_on.digest}
        self._log_metrics(run_id, {f"test_{k}": v for k, v in result["test"].items()}, stamp, **about)
        self._note_best(run_id, trial, result, stamp)

    def log_student(self, trial: Trial, folder: TrialFolder) -> str | None:
        """Logs a finished trial's student as a model of its run; returns its URI, or None if its folder is gone."""
        run_id = self.trial_run(trial)
        if (student := logged_student(self.client, run_id)) is not None:
            return student
        if self.config.remote:
            copy_of(self.config.remote, self.config.directory).pull(f"trials/{trial.id}/student")
        if not folder.student.is_dir():
            return None
        task, ended = parse_task(trial.task), self.client.get_run(run_id).info
        reads = ["rationale"] * METHODS[trial.method].rationale_as_input + ["choices"] * task.needs_choices
        log_student(run_id, folder.student, trial_params(trial), task, reads)
        if ended.status == "FINISHED":  # MLflow opened it again
            self.client.set_terminated(run_id, ended.status, ended.end_time)
        return logged_student(self.client, run_id)

    def _among_the_best(self, result: dict[str, Any]) -> bool:
        """Whether a finished trial is one of the best by validation of those that are finished, as many as are logged as models."""
        number = self.config.tracking.models
        self._merits[result["trial_id"]] = merit(result)
        if len(self._merits) > number:
            del self._merits[min(self._merits, key=lambda trial: (self._merits[trial], trial != result["trial_id"]))]
        return result["trial_id"] in self._merits

    @cached_property
    def _merits(self) -> dict[str, tuple[float, float]]:
        """Trial id → merit of the best of the trials that were finished before."""
        results = (TrialFolder(path.parent).result() for path in self.config.directory.glob("trials/*/result.json"))
        merits = ((result["trial_id"], merit(result)) for result in results)
        return dict(heapq.nlargest(self.config.tracking.models, merits, key=lambda entry: entry[1]))

    def _note_best(self, run_id: str, trial: Trial, result: dict[str, Any], stamp: int | None) -> None:
        """Names the best trial by validation on the study's own run."""
        accuracy = float(result["validation"]["accuracy"])
        if accuracy <= self._best:
            return
        self._best = accuracy
        values = {"best_validation_accuracy": accuracy, "test_accuracy_of_best": result["test"]["accuracy"]}
        self._log_metrics(self.parent_run, values, stamp)
        self.client.set_tag(self.parent_run, "best_trial", trial.title)
        self.client.set_tag(self.parent_run, "best_trial_run", run_id)

    @cached_property
    def _best(self) -> float:
        return self.client.get_run(self.parent_run).data.metrics.get("best_validation_accuracy", -1.0)


def named_metrics(values: dict[str, float]) -> dict[str, float]:
    """The metrics under names that MLflow takes, without those of single labels if there are many labels."""
    of_labels = [key for key in values if OF_A_LABEL.search(key)]
    left_out = set(of_labels) if len(of_labels) > 2 * MOST_LABELS else set()
    return {(OTHER.sub("_", k) if k in of_labels else k)[:LONGEST_NAME]: v for k, v in values.items() if k not in left_out}


def trial_params(trial: Trial) -> dict[str, str]:
    """What a trial is, as MLflow's parameters: blocks are flattened (`training.steps`), None is left out, long ones are cut."""
    params: dict[str, str] = {}
    for key, value in trial.to_dict().items():
        values = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        params |= {k: shorten(str(v)) for k, v in values.items() if v is not None}
    return params


def shorten(value: str) -> str:
    return value if len(value) <= LONGEST_PARAM else f"{value[: LONGEST_PARAM - 1]}…"


def describe_study(config: StudyConfig) -> str:
    """The note on a study's run, in Markdown."""
    grid = "\n".join(f"- {key}: {', '.join(map(str, values))}" for key, values in config.grid.model_dump().items() if values)
    return (
        f"Examples: `{config.data.source_name}`. Teacher: `{config.teacher.model}`.\n\n{grid}\n\n"
        "Runs are chosen by `best_validation_accuracy`; `test_accuracy` has its 95 % interval in `test_ci_low` and "
        "`test_ci_high`."
    )
