"""The grid of trials on Ray Tune: what is done is skipped, what is left is trained, MLflow follows from the folders."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.config import StudyConfig
from cotd.errors import CotdError
from cotd.methods import METHODS
from cotd.progress import console, track
from cotd.reviews import Reviews
from cotd.sources import load_reviews
from cotd.student import model_digest
from cotd.tracking import StudyTracker
from cotd.trials import Trial, TrialFolder, plan_trials
from pipelines.annotate import AnnotationFiles, check_gold, read_annotations, write_parquet
from pipelines.cluster import ray_session


@dataclass(frozen=True)
class Plan:
    """A study's trials, and the data they share."""

    config: StudyConfig
    trials: list[Trial]
    reviews: Path
    annotations: Path | None
    provenance: dict[str, Any]

    def folder(self, trial: Trial) -> TrialFolder:
        return TrialFolder(self.config.directory / "trials" / trial.id)

    def pending(self) -> list[Trial]:
        return [t for t in self.trials if not self.folder(t).done]


def plan_study(config: StudyConfig) -> Plan:
    """Checks all that a sweep needs, and writes the data that its trials share.

    Raises:
        CotdError: bad reviews, missing gold labels, missing annotations, a base model that does not exist.
    """
    reviews = load_reviews(config.data)
    check_gold(config, reviews)
    found = check_annotations(config, reviews)
    digests = {size: model_digest(config.sizes[size]) for size in config.grid.size}
    trials = plan_trials(config, digests, reviews.digest(), found[1]["digest"] if found else None)
    shared = config.directory / "data" / f"reviews-{reviews.digest()}.parquet"
    if not shared.is_file():
        shared.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(reviews.table, shared)
    provenance: dict[str, Any] = {"data": {"source": config.data.source, "digest": reviews.digest(), "rows": reviews.counts}}
    if found:
        provenance["teacher"] = {k: found[1]["teacher"][k] for k in ("model", "strategy", "accuracy", "n")}
    annotations = AnnotationFiles.of(config).annotations if found else None
    return Plan(config, trials, shared, annotations, provenance)


def check_annotations(config: StudyConfig, reviews: Reviews) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """The study's annotations, or None where no method needs any.

    Raises:
        CotdError: they are needed and missing, are of other reviews, or lack the gold-conditioned ones.
    """
    needing = [m for m in config.grid.method if METHODS[m].needs_annotations]
    found = read_annotations(config)
    if not needing:
        return found
    if found is None:
        raise CotdError(f"{', '.join(needing)} need annotations, and {config.name} has none yet. Run `cotd annotate CONFIG` first.")
    train = reviews.split("train")
    table = found[0]
    missing = len(train) - train["id"].isin(set(table["review_id"])).sum()
    if missing:
        raise CotdError(
            f"{missing} of {len(train)} training reviews have no annotation: data or teacher changed since. "
            "Run `cotd annotate CONFIG` again; what is known is not asked again."
        )
    if "given_gold" in {METHODS[m].rationale for m in needing} and not table["gold_conditioned"].any():
        raise CotdError(
            "cot_labelled needs rationales given the gold label, and these annotations have none. "
            "Set teacher.gold_conditioned: true and run `cotd annotate CONFIG` again."
        )
    return found


def sweep(config: StudyConfig) -> dict[str, Any]:
    """Trains every trial of the study that is not done.

    Returns:
        `trials`: how many, `trained`, `failed` (id → last line of its error), `seconds`.

    Raises:
        CotdError: bad input, before any worker starts.
    """
    plan = plan_study(config)
    tracker = StudyTracker(config)
    pending = plan.pending()
    done = [t for t in plan.trials if t not in pending]
    if found := read_annotations(config):
        tracker.log_teacher(found[1])
    for trial in done:
        tracker.sync_trial(trial, plan.folder(trial))
    console.print(f"  {len(plan.trials)} trials: {len(done)} done before, {len(pending)} to train")
    if pending:
        try:
            with ray_session():
                run_trials(plan, pending, tracker)
        finally:
            for trial in plan.pending():
                tracker.close_stale(trial)
    failed = {t.id: last_line(plan.folder(t).error) for t in plan.pending()}
    for trial in pending:
        tracker.sync_trial(trial, plan.folder(trial))
    tracker.finish_study(failed=bool(failed))
    return {"trials": len(plan.trials), "trained": len(pending) - len(failed), "failed": failed}


def run_trials(plan: Plan, pending: list[Trial], tracker: StudyTracker) -> None:
    """Runs trials on Ray Tune, several at once by their resources."""
    # These are read when Tune is imported: Ctrl-C is ours to handle, and trials stay in this directory.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    from ray import tune

    config = plan.config
    check_resources(config)
    for trial in pending:
        plan.folder(trial).write_trial(trial, config)
        tracker.reopen(trial)
    resources = {"cpu": config.resources.cpus, "gpu": config.resources.gpus}
    with watch_trials(plan, pending, tracker) as watcher:
        tuner = tune.Tuner(
            tune.with_resources(run_trial, resources),
            param_space={
                "folder": tune.grid_search([str(plan.folder(t).path) for t in pending]),
                "reviews": str(plan.reviews),
                "annotations": str(plan.annotations) if plan.annotations else None,
                "provenance": plan.provenance,
                "threads": max(1, int(config.resources.cpus)),
            },
            # A process that trained one trial trains the next: starting one costs ten seconds of imports.
            tune_config=tune.TuneConfig(max_concurrent_trials=config.resources.max_concurrent, reuse_actors=True),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(config.directory),
                failure_config=tune.FailureConfig(max_failures=config.resources.max_failures),
                callbacks=[watcher],
                verbose=0,
            ),
        )
        tuner.fit()


def check_resources(config: StudyConfig) -> None:
    """Raises a CotdError if the cluster can never hold one trial."""
    import ray

    have = ray.cluster_resources()
    for name, wanted in (("CPU", config.resources.cpus), ("GPU", config.resources.gpus)):
        if wanted > have.get(name, 0):
            raise CotdError(
                f"each trial asks for {wanted:g} {name}s (resources.{name.lower()}s) and Ray has {have.get(name, 0):g}. "
                "Ask for less, or join a larger cluster (RAY_ADDRESS)."
            )


def run_trial(params: dict[str, Any]) -> None:
    """One trial, in a Ray worker. A failure leaves its traceback in the trial's folder."""
    import torch
    from ray import tune

    from cotd.training import train_trial

    torch.set_num_threads(params["threads"])
    folder = TrialFolder(Path(params["folder"]))
    reviews = pd.read_parquet(params["reviews"])
    annotations = pd.read_parquet(params["annotations"]) if params["annotations"] else None
    trial = folder.trial()
    try:
        result = train_trial(trial, folder, reviews, annotations, params["provenance"], on_score=tune.report)
    except Exception:
        folder.error.write_text(traceback.format_exc(), encoding="utf-8")
        raise
    tune.report({"step": result["steps"], "test_accuracy": result["test"]["accuracy"]})


@contextlib.contextmanager
def watch_trials(plan: Plan, pending: list[Trial], tracker: StudyTracker) -> Iterator[Any]:
    """Yields a Tune callback that shows progress and keeps MLflow up with the trials' folders."""
    from ray.tune import Callback

    by_folder = {str(plan.folder(t).path): t for t in pending}
    steps_seen = dict.fromkeys(by_folder, 0)

    def make_watcher(advance: Callable[[int], None]) -> Callback:
        class Watcher(Callback):
            def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
                key = trial.config["folder"]
                advance(max(0, int(result["step"]) - steps_seen[key]))
                steps_seen[key] = max(steps_seen[key], int(result["step"]))
                tracker.sync_curve(by_folder[key], TrialFolder(Path(key)))

            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                finished, folder = by_folder[trial.config["folder"]], TrialFolder(Path(trial.config["folder"]))
                tracker.sync_trial(finished, folder)
                console.print(f"  {finished.title}: {describe_result(folder.result())}")

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                failed, folder = by_folder[trial.config["folder"]], TrialFolder(Path(trial.config["folder"]))
                console.print(f"  {failed.title}: failed: {last_line(folder.error)}")

        return Watcher()

    total = sum(t.training.steps for t in pending)
    with track(f"training {len(pending)} students", total, "steps") as advance:
        yield make_watcher(advance)


def describe_result(result: dict[str, Any]) -> str:
    test = result["test"]
    return (
        f"test accuracy {test['accuracy']:.1%} [{test['ci_low']:.1%}, {test['ci_high']:.1%}], "
        f"validation {result['validation']['accuracy']:.1%}, {result['seconds']:.0f} s"
    )


def last_line(path: Path) -> str:
    """The last line of a trial's error, or that there is none."""
    lines = path.read_text(encoding="utf-8").strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else "stopped before it was done"
