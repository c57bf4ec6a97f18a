"""The grid of trials on Ray Tune: what is done is skipped, what is left is trained, MLflow follows from the folders."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune

from cotd.config import StudyConfig
from cotd.errors import CotdError
from cotd.progress import say, track
from cotd.storage import copy_of, in_working_copy, light, on_storage, open_remote
from cotd.system_metrics import sample_load
from cotd.tracking import StudyTracker, attempt
from cotd.trials import Trial, TrialFolder
from pipelines.annotate import read_annotations, read_rationales, read_teacher_test
from pipelines.cluster import ignore_interrupts, ray_session, require_shared
from pipelines.locking import only_one
from pipelines.runtime_env import require_lasting
from pipelines.study import Plan, plan_study


@on_storage
def sweep(config: StudyConfig) -> dict[str, Any]:
    """Trains every trial of the study that is not done.

    Returns:
        `trials`: how many, `trained`, `failed` (id → last line of its error), `seconds`.

    Raises:
        CotdError: bad input, before any worker starts.
    """
    require_lasting(config)
    with only_one(config.directory, f"sweeping {config.name}", "finished trials are kept and will not be trained again."):
        return sweep_alone(config)


def sweep_alone(config: StudyConfig) -> dict[str, Any]:
    """`sweep`, when no other process works on the study."""
    plan = plan_study(config)
    tracker = StudyTracker(config)
    pending = plan.pending()
    done = [t for t in plan.trials if t not in pending]
    status = "KILLED"
    tracker.start_study()
    try:
        if plan.annotations and (found := read_annotations(config)):
            tracker.log_teacher(found[1])
        for trial in done:
            tracker.sync_trial(trial, plan.folder(trial))
        say(f"  {len(plan.trials)} trials: {len(done)} done before, {len(pending)} to train")
        if pending:
            with ray_session():
                if not config.remote:
                    require_shared(plan.reviews)
                run_trials(plan, pending, tracker)
        failed = {t.id: last_line(plan.folder(t).error) for t in plan.pending()}
        status = "FAILED" if failed else "FINISHED"
    finally:
        with ignore_interrupts():
            for trial in pending:
                tracker.settle(trial, plan.folder(trial))
            tracker.end_study(status)
    return {"trials": len(plan.trials), "trained": len(pending) - len(failed), "failed": failed}


def run_trials(plan: Plan, pending: list[Trial], tracker: StudyTracker) -> None:
    """Runs trials on Ray Tune, several at once by their resources."""
    # Ctrl-C is ours to handle, trials stay in this directory, and MLflow is the only log.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    config = plan.config
    resources = trial_resources(config)
    for trial in pending:
        plan.folder(trial).write_trial(trial, config)
    if config.remote:
        copy_of(config.remote, config.directory).push()  # what workers pull
    with track(f"training {len(pending)} students", sum(t.training.steps for t in pending), "steps") as advance:
        tuner = tune.Tuner(
            tune.with_resources(run_trial, resources),
            param_space={
                "storage": config.remote,
                "directory": str(config.directory),
                "folder": tune.grid_search([str(plan.folder(t).path) for t in pending]),
                "reviews": str(plan.reviews),
                "annotations": str(plan.annotations) if plan.annotations else None,
                "teacher_test": str(plan.teacher_test) if plan.teacher_test else None,
                "held_out_rationales": str(plan.held_out_rationales) if plan.held_out_rationales else None,
                "provenance": plan.provenance,
                "threads": max(1, int(config.resources.cpus)),
            },
            # A process that trained one trial trains the next: starting one costs ten seconds of imports.
            tune_config=tune.TuneConfig(max_concurrent_trials=config.resources.max_concurrent, reuse_actors=True),
            run_config=tune.RunConfig(
                name="tune",
                **tune_storage(config),
                failure_config=tune.FailureConfig(max_failures=config.resources.max_failures),
                callbacks=[TrialWatcher(plan, pending, tracker, advance)],
                verbose=0,
            ),
        )
        tuner.fit()
    files, place = open_remote(config.remote or str(config.directory))
    with contextlib.suppress(OSError):
        files.rm(f"{place}/tune", recursive=True)  # Tune's own state; ours is in the trials' folders


def tune_storage(config: StudyConfig) -> dict[str, Any]:
    """Where Tune keeps its own state, which every node must reach: the study's storage."""
    if config.remote is None:
        return {"storage_path": str(config.directory)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    files, place = open_remote(config.remote)
    return {"storage_path": place, "storage_filesystem": PyFileSystem(FSSpecHandler(files))}


def trial_resources(config: StudyConfig) -> dict[str, float]:
    """What each trial asks Ray for.

    Raises:
        CotdError: the cluster can never hold one trial.
    """
    import ray

    have = ray.cluster_resources()
    gpus = config.resources.gpus
    if gpus is None:
        gpus = 0.25 if have.get("GPU", 0) > 0 else 0
    for key, name, wanted in (("cpus", "CPU", config.resources.cpus), ("gpus", "GPU", gpus)):
        if wanted > have.get(name, 0):
            raise CotdError(
                f"each trial asks for {wanted:g} {name} (resources.{key}) and Ray has {have.get(name, 0):g}. "
                "Ask for less, or join a larger cluster (RAY_ADDRESS)."
            )
    return {"cpu": config.resources.cpus, "gpu": gpus}


@in_working_copy
def run_trial(params: dict[str, Any]) -> None:
    """One trial, in a Ray worker. A failure leaves its traceback in the trial's folder."""
    import torch

    from cotd.training import train_trial

    torch.set_num_threads(params["threads"])
    folder = TrialFolder(Path(params["folder"]))
    reviews = pd.read_parquet(params["reviews"])
    annotations = pd.read_parquet(params["annotations"]) if params["annotations"] else None
    trial = folder.trial()
    try:
        teacher_test = read_teacher_test(params["teacher_test"])
        rationales = read_rationales(params["held_out_rationales"])
        with sample_load(folder.system_metrics):
            result = train_trial(
                trial, folder, reviews, annotations, params["provenance"], tune.report, teacher_test, rationales
            )
    except Exception:
        folder.error.write_text(traceback.format_exc(), encoding="utf-8")
        raise
    tune.report({"step": result["steps"], "test_accuracy": result["test"]["accuracy"]})


class TrialWatcher(tune.Callback):
    """Shows progress, and keeps MLflow up with the trials' folders. Lives in the driver alone."""

    def __init__(self, plan: Plan, pending: list[Trial], tracker: StudyTracker, advance: Callable[[int], None]):
        self.trials = {str(plan.folder(t).path): t for t in pending}
        self.steps = dict.fromkeys(self.trials, 0)
        self.tracker = tracker
        self.advance = advance
        self.warned = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks to restore an experiment; ours is restored from the trials' folders."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._tell_mlflow(lambda: self.tracker.reopen(self._of(trial)[0]))  # only now, so that its duration is its own

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        ours, folder = self._of(trial)
        key, step = str(folder.path), int(result["step"])
        self.advance(max(0, step - self.steps[key]))
        self.steps[key] = max(self.steps[key], step)
        self._tell_mlflow(lambda: self.tracker.sync_curve(ours, folder))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        ours, folder = self._of(trial)
        self._tell_mlflow(lambda: self.tracker.sync_trial(ours, folder))
        say(f"  {ours.title}: {describe_result(folder.result())}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        ours, folder = self._of(trial)
        say(f"  {ours.title}: failed: {last_line(folder.error)}")

    def _tell_mlflow(self, write: Callable[[], Any]) -> None:
        """Writes to MLflow if it answers; if not, trials go on, and what is missing is written at the end."""
        problem = attempt(write)
        if problem and not self.warned:
            self.warned = True
            say(f"  MLflow does not answer ({problem}); trials go on, and are logged at the end")

    def _of(self, trial: Any) -> tuple[Trial, TrialFolder]:
        folder, config = trial.config["folder"], self.tracker.config
        if config.remote:
            copy_of(config.remote, config.directory).pull(f"trials/{Path(folder).name}", light)
        return self.trials[folder], TrialFolder(Path(folder))


def describe_result(result: dict[str, Any]) -> str:
    test = result["test"]
    cut = f", {result['cut_targets']:,} of {result['train_pairs']:,} targets cut (training.max_target_tokens)"
    return (
        f"test accuracy {test['accuracy']:.1%} [{test['ci_low']:.1%}, {test['ci_high']:.1%}], "
        f"validation {result['validation']['accuracy']:.1%}, {result['seconds']:.0f} s"
        f"{cut if result['cut_targets'] else ''}"
    )


def last_line(path: Path) -> str:
    """The last line of a trial's error, or that there is none."""
    lines = path.read_text(encoding="utf-8").strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else "stopped before it was done"
