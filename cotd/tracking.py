"""MLflow: the only module that talks to it. The driver alone writes, from the trials' folders, idempotently."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import re
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotd.annotation_metrics import annotation_metrics, reliability_figure
from cotd.config import StudyConfig
from cotd.errors import CotdError
from cotd.model_cache import fetch_version
from cotd.trials import Trial, TrialFolder

if TYPE_CHECKING:
    from cotd.pretraining.config import PretrainConfig

TRIAL_TAG = "cotd.trial_id"
PARENT_TAG = "mlflow.parentRunId"
CHAMPION = "champion"
# What a served student imports besides cotd.
PYFUNC_PACKAGES = ("torch", "transformers", "pandas", "scipy", "sentencepiece")


def quiet_mlflow() -> None:
    """MLflow without usage telemetry and without its progress bars and migration log."""
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    # A server that is down is an error at once, and not after four minutes; who follows a sweep tries again by itself.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)


class StudyTracker:
    """A study's experiment: one parent run, and one nested run a trial.

    Everything it writes it looks up first, so that a sweep run again goes on in the same runs.
    """

    def __init__(self, config: StudyConfig):
        self.config = config
        self.uri = config.tracking_uri()
        with friendly_errors(self.uri):
            self.client = open_store(self.uri)
            self.experiment_id = self._experiment(config.tracking.experiment or config.name)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise CotdError(f"the MLflow experiment '{name}' is deleted; restore it, or set tracking.experiment.")
            return found.experiment_id
        local = self.uri.startswith(("sqlite:", "/"))
        artifacts = Path(self.config.storage).expanduser().absolute() / "mlflow-artifacts" / name if local else None
        return self.client.create_experiment(name, artifact_location=artifacts.as_uri() if artifacts else None)

    @cached_property
    def parent_run(self) -> str:
        """The id of the study's own run."""
        found = self.client.search_runs(
            [self.experiment_id], f"tags.`cotd.study` = '{self.config.name}' and tags.`cotd.kind` = 'study'", max_results=1
        )
        if found:
            return found[0].info.run_id
        tags = {"cotd.study": self.config.name, "cotd.kind": "study"}
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=self.config.name)
        self.client.set_terminated(run.info.run_id)  # `start_study` opens it
        return run.info.run_id

    def trial_run(self, trial: Trial) -> str:
        """The id of a trial's run, made where there is none."""
        if found := self._runs_of(trial):
            return found[0].info.run_id
        tags = {TRIAL_TAG: trial.id, PARENT_TAG: self.parent_run, "cotd.study": self.config.name, "cotd.kind": "trial"}
        tags |= {"method": trial.method, "size": trial.size}
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=trial.title)
        return run.info.run_id

    def _log_params(self, run_id: str, trial: Trial) -> None:
        """Logs what the trial is, once: parameters cannot change, and names (of sizes, of paths) may."""
        from mlflow.entities import Param

        if self.client.get_run(run_id).data.params:
            return
        plain = trial.to_dict()
        training = plain.pop("training")
        pairs = {**plain, **{f"training.{k}": v for k, v in training.items()}}
        self.client.log_batch(run_id, params=[Param(k, str(v)) for k, v in pairs.items()])

    def sync_curve(self, trial: Trial, folder: TrialFolder) -> None:
        """Logs the validation scores that the run does not have yet."""
        from mlflow.entities import Metric

        run_id = self.trial_run(trial)
        logged = {m.step for m in self.client.get_metric_history(run_id, "validation_accuracy")}
        new = [point for point in folder.curve() if int(point["step"]) not in logged]
        stamp = int(folder.metrics.stat().st_mtime * 1000) if folder.metrics.is_file() else 0
        metrics = [Metric(k, v, stamp, int(p["step"])) for p in new for k, v in p.items() if k != "step"]
        if metrics:
            self.client.log_batch(run_id, metrics=metrics)

    def sync_trial(self, trial: Trial, folder: TrialFolder) -> str:
        """Brings a trial's run to what its folder says; returns the run's id. Does nothing where it is complete."""
        run_id = self.trial_run(trial)
        run = self.client.get_run(run_id)
        if run.info.status == "FINISHED" and "test_accuracy" in run.data.metrics:
            return run_id
        self._log_params(run_id, trial)
        self.sync_curve(trial, folder)
        if folder.done:
            self._log_result(run_id, folder)
            self.client.set_terminated(run_id, "FINISHED")
        elif folder.pruned:
            self.client.set_tag(run_id, "cotd.pruned", "true")
            self.client.set_terminated(run_id, "FINISHED")
        elif folder.error.is_file():
            self.client.log_artifact(run_id, str(folder.error))
            self.client.set_terminated(run_id, "FAILED")
        return run_id

    def _log_result(self, run_id: str, folder: TrialFolder) -> None:
        from mlflow.entities import Metric

        result = folder.result()
        values = {f"test_{k}": v for k, v in result["test"].items()}
        values |= {f"best_validation_{k}": v for k, v in result["validation"].items()}
        values |= {
            k: result[k] for k in ("train_seconds", "seconds", "train_reviews", "train_pairs", "parameters", "best_step")
        }
        metrics = [Metric(k, float(v), 0, 0) for k, v in values.items()]
        self.client.log_batch(run_id, metrics=metrics)
        self.client.log_dict(run_id, folder.config(), "config.json")
        self.client.log_artifact(run_id, str(folder.predictions))
        if folder.student.is_dir() and not self.logged_student(run_id):
            log_student(run_id, folder.student)

    def logged_student(self, run_id: str) -> str | None:
        """The URI of the student logged with a run, or None."""
        outputs = self.client.get_run(run_id).outputs
        models = outputs.model_outputs if outputs else []
        return f"models:/{models[-1].model_id}" if models else None

    def log_teacher(self, summary: dict[str, Any], page: Path | None = None) -> None:
        """The teacher's benchmark, the annotations' quality and their provenance, on the study's own run.

        Args:
            page: the annotations to read in a browser.
        """
        from mlflow.entities import Metric

        values = annotation_metrics(summary)
        self.client.log_batch(self.parent_run, metrics=[Metric(k, v, 0, 0) for k, v in values.items()])
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
        """Marks a trial's run as being worked on, again after a stop."""
        run_id = self.trial_run(trial)
        self._log_params(run_id, trial)
        self.client.update_run(run_id, status="RUNNING")

    def _runs_of(self, trial: Trial) -> list[Any]:
        return list(self.client.search_runs([self.experiment_id], f"tags.`{TRIAL_TAG}` = '{trial.id}'", max_results=1))

    # --- the registry -------------------------------------------------------------------------------------------

    def champion(self) -> Any | None:
        """The model version that the alias `champion` names, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version_by_alias(self.config.tracking.registered_model, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model, or no such alias
                return None
            raise

    def register(self, run_id: str, tags: dict[str, str]) -> Any:
        """Registers the student of a run as a new version (or finds the one it already is), with tags."""
        name = self.config.tracking.registered_model
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.run_id == run_id:
                return self.client.get_model_version(name, version.version)  # with its tags
        source = self.logged_student(run_id)
        if source is None:
            raise CotdError(f"run {run_id} has no student in MLflow; run `cotd sweep` again to log it.")
        import mlflow

        with contextlib.redirect_stderr(io.StringIO()):  # MLflow announces what `cotd promote` says itself
            made = mlflow.register_model(source, name, tags=tags)
        return self.client.get_model_version(name, made.version)

    def crown(self, version: str) -> None:
        """Moves the alias `champion` to a version."""
        self.client.set_registered_model_alias(self.config.tracking.registered_model, CHAMPION, version)


class PretrainingTracker:
    """A pretraining run in MLflow: one run a recipe, gone on with after a stop."""

    def __init__(self, config: PretrainConfig, digest: str):
        storage = config.directory.parent
        uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage / 'mlflow.db'}"
        with friendly_errors(uri):
            self.client = open_store(uri)
            experiment = self.client.get_experiment_by_name("pretraining")
            local = uri.startswith(("sqlite:", "/"))
            artifacts = (storage / "mlflow-artifacts" / "pretraining").as_uri() if local else None
            self.experiment_id = (
                experiment.experiment_id if experiment else self.client.create_experiment("pretraining", artifacts)
            )
        found = self.client.search_runs([self.experiment_id], f"tags.`cotd.recipe` = '{digest}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        tags = {"cotd.recipe": digest, "cotd.kind": "pretraining"}
        self.run_id = self.client.create_run(self.experiment_id, tags=tags, run_name=config.name).info.run_id
        self.client.log_dict(self.run_id, config.model_dump(), "config.json")

    def log(self, point: dict[str, float]) -> None:
        """Logs a point's values at its step. A store that does not answer is no reason to stop training."""
        from mlflow.entities import Metric

        step, stamp = int(point["step"]), int(time.time() * 1000)
        values = {k: v for k, v in point.items() if k not in ("step", "seconds")}
        attempt(lambda: self.client.log_batch(self.run_id, metrics=[Metric(k, v, stamp, step) for k, v in values.items()]))

    def finish(self, summary: dict[str, Any], card: Path) -> None:
        """Logs the summary and the model's card."""
        attempt(lambda: self.client.log_dict(self.run_id, summary, "summary.json"))
        attempt(lambda: self.client.log_artifact(self.run_id, str(card)))

    def end(self, status: str) -> None:
        attempt(lambda: self.client.set_terminated(self.run_id, status))


def attempt(write: Callable[[], Any]) -> str | None:
    """Writes to MLflow; None where that worked, else the first line of what MLflow said."""
    from mlflow.exceptions import MlflowException

    try:
        write()
    except (MlflowException, OSError) as error:  # artifacts go by another way than metrics, with errors of its own
        return str(error).splitlines()[0]
    return None


def log_student(run_id: str, directory: Path) -> None:
    """Logs a student's folder as a pyfunc model of a run, by code and safetensors: nothing is pickled."""
    import mlflow

    # MLflow insists on a hint about type hints, whatever the warning filters say; errors are raised, not written.
    with contextlib.redirect_stderr(io.StringIO()), mlflow.start_run(run_id=run_id, log_system_metrics=False):
        mlflow.pyfunc.log_model(
            name="student",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"student": str(directory)},
            code_paths=[str(Path(__file__).parent)],  # cotd itself: it is on no package index
            pip_requirements=[f"{p}=={importlib.metadata.version(p)}" for p in PYFUNC_PACKAGES],
        )
    mlflow.MlflowClient().update_run(run_id, status="RUNNING")


def open_store(uri: str) -> Any:
    """An MLflow client of the store, which becomes the one in use; an SQLite file is made where there is none.

    One process at a time makes its tables: two that find them missing break each other.
    """
    quiet_mlflow()
    import mlflow
    from filelock import FileLock

    use_tracking(uri)
    if not uri.startswith("sqlite:///"):
        return mlflow.MlflowClient(uri, uri)
    file = Path(uri.removeprefix("sqlite:///"))
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        client = mlflow.MlflowClient(uri, uri)
        client.search_experiments(max_results=1)  # opens it: a client by itself is lazy
        return client


@contextlib.contextmanager
def friendly_errors(uri: str) -> Iterator[None]:
    """Turns MLflow's failure to reach its store into one readable message."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise CotdError(
            f"cannot use the MLflow tracking store '{uri}': {first} "
            "Start the server, or set tracking.uri (sqlite:///… needs no server)."
        ) from error


def use_tracking(uri: str | None) -> None:
    """Makes `uri` the tracking store and registry that `models:/…` is looked up in; None leaves it as it is."""
    quiet_mlflow()
    import mlflow

    if uri:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)


def download_student(uri: str) -> Path:
    """The local folder of the student that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        CotdError: no such model, alias or version.
    """
    quiet_mlflow()
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        folder = fetch_version(uri)
    except MlflowException as error:
        raise CotdError(
            f"no student '{uri}' in {mlflow.get_tracking_uri()}: {str(error).splitlines()[0]} Run `cotd promote CONFIG` first."
        ) from error
    student = folder / "artifacts" / "student"
    return student if student.is_dir() else folder


def model_version(uri: str) -> tuple[str, str]:
    """(name, version) that a `models:/…` URI stands for now; for any other source its name and "local"."""
    import mlflow
    from mlflow.exceptions import MlflowException

    match = re.fullmatch(r"models:/([^/@]+)(?:@(.+)|/(\d+))", uri)
    if not match:
        return Path(uri).name, "local"
    name, alias, version = match.groups()
    if alias:
        try:
            version = mlflow.MlflowClient().get_model_version_by_alias(name, alias).version
        except MlflowException as error:
            raise CotdError(
                f"no model '{name}' with the alias '{alias}' in {mlflow.get_tracking_uri()}. Run `cotd promote CONFIG` first, "
                "or name the store: --tracking-uri."
            ) from error
    return name, str(version)
