"""The grid of trials on Ray Tune: what is done is skipped, what is left is trained, MLflow follows from the folders."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from ray import tune

from cotd.errors import CotdError
from cotd.progress import say, steady_stream
from cotd.storage.tracking_store import attempt, friendly_errors
from cotd.storage.urls import open_remote
from cotd.storage.working_copy import copy_of, sync_study
from cotd.study.config import StudyConfig
from cotd.study.grid import MANY_TRIALS
from cotd.tracking.runs import StudyTracker
from cotd.training.folder import merit
from cotd.training.trial import Trial
from pipelines.annotate.files import AnnotationFiles, read_annotations
from pipelines.cluster.lock import only_one
from pipelines.cluster.resources import InTurn, needs_by_size, ray_nodes
from pipelines.cluster.runtime_env import require_lasting
from pipelines.cluster.session import ignore_interrupts, ray_session, require_shared
from pipelines.sweep.board import Board
from pipelines.sweep.follower import MlflowFollower
from pipelines.sweep.plan import Plan, plan_study
from pipelines.sweep.search import METRIC, scheduler
from pipelines.sweep.trial import run_trial, tune_storage
from pipelines.sweep.watch import TrialWatcher, error_line


@sync_study
def sweep(config: StudyConfig, yes: bool = False) -> dict[str, Any]:
    """Trains every trial of the study that is not done.

    Args:
        yes: a grid of any size is meant.

    Returns:
        `trials`: how many, `trained`, `pruned` (samples of a search that were given up), `failed` (id → last line of its
        error), `best` (of all that are done, by validation: title and validation_accuracy; None where none is), `behind`
        (trials that MLflow does not know all of, because it has gone away).

    Raises:
        CotdError: bad input, before any worker starts.
    """
    check_size(config, yes)
    require_lasting(config)
    with only_one(config.directory, f"sweeping {config.name}", "finished trials are kept and will not be trained again."):
        return sweep_alone(config)


def check_size(config: StudyConfig, yes: bool) -> None:
    """Asks whether a very large grid is meant.

    Raises:
        CotdError: it is not, or there is nobody to ask.
    """
    trials = config.grid.count_all() * (config.search.samples if config.search else 1)
    if trials <= MANY_TRIALS or yes:
        return
    found = f"{config.name} has up to {trials:,} trials"
    if not sys.stdin.isatty():
        raise CotdError(f"{found}. Nobody is at a terminal to agree: shorten the lists of grid, or run again with --yes.")
    if input(f"{found}; go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CotdError("not started; nothing was trained.")


def sweep_alone(config: StudyConfig) -> dict[str, Any]:
    """`sweep`, when no other process works on the study."""
    plan = plan_study(config)
    tracker = StudyTracker(config)
    pending = plan.pending()
    waiting = {t.id for t in pending}
    ended = [t for t in plan.trials if t.id not in waiting]
    status, behind = "KILLED", 0
    with friendly_errors(tracker.uri):
        tracker.start_study()
    follower = MlflowFollower(plan, tracker).start()
    with steady_stream():
        try:
            if plan.annotations and (found := read_annotations(config)):
                attempt(lambda: tracker.log_teacher(found[1], AnnotationFiles.of(config).page))
            for trial in ended:
                follower.note(trial, ended=True)
            say(f"  {len(plan.trials)} trials: {len(ended)} done before, {len(pending)} to train")
            if pending:
                with ray_session():
                    if not config.remote:
                        require_shared(plan.reviews)
                    run_trials(plan, pending, follower)
            failed = {t.id: error_line(plan.folder(t).error) for t in plan.pending()}
            status = "FAILED" if failed else "FINISHED"
        finally:
            with ignore_interrupts():
                behind = follower.close(pending)
                if attempt(lambda: tracker.end_study(status)) or behind:
                    say(f"  MLflow has gone away and lacks the end of {behind} trials, which are in their folders.")
                    say("  Run the same command again when it is back: they are written then, and nothing is trained twice.")
    pruned = [t for t in pending if plan.folder(t).pruned]
    return {
        "trials": len(plan.trials), "trained": len(pending) - len(failed) - len(pruned), "pruned": len(pruned), "failed": failed,
        "best": best_done(plan), "behind": behind,
    }  # fmt: skip


def best_done(plan: Plan) -> dict[str, Any] | None:
    """The title and validation accuracy of the best trial that is done, by validation."""
    done = [(t, plan.folder(t).result()) for t in plan.trials if plan.folder(t).done]
    if not done:
        return None
    trial, result = max(done, key=lambda entry: (*merit(entry[1]), entry[0].id))
    return {"trial_id": trial.id, "title": trial.title, METRIC: result["validation"]["accuracy"]}


def run_trials(plan: Plan, pending: list[Trial], follower: MlflowFollower) -> None:
    """Runs trials on Ray Tune, several at once by their resources, in the order given."""
    # Ctrl-C is ours to handle, trials stay in this directory, MLflow is the only log, and Tune's state is never restored.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "3600"
    config = plan.config
    by_size = needs_by_size(config, [t.size for t in pending])
    needs = {str(plan.folder(t).path): by_size[t.size] for t in pending}
    several = {folder: asked for folder, asked in needs.items() if asked.workers > 1}
    alike = len(set(by_size.values())) == 1
    for trial in pending:
        plan.folder(trial).write_trial(trial, config.model_dump())
    if config.remote:
        copy_of(config.remote, config.directory).push()  # what workers pull
    waiting = {t.id for t in pending}
    earlier = [t for t in plan.trials if t.id not in waiting] if config.search else []
    best = best_done(plan)
    with Board({t.id: plan.cost(t) for t in pending}, pending, (best[METRIC], best["title"]) if best else None) as board:
        tuner = tune.Tuner(
            tune.with_resources(
                run_trial, by_size[pending[0].size].in_tune() if alike else lambda params: needs[params["folder"]].in_tune()
            ),
            param_space={
                "storage": config.remote,
                "directory": str(config.directory),
                "folder": tune.grid_search([str(plan.folder(t).path) for t in pending]),
                "reviews": plan.reviews,
                "annotations": plan.annotations,
                "teacher_test": plan.teacher_test,
                "held_out_rationales": plan.held_out_rationales,
                "cache": plan.cache,
                "provenance": plan.provenance,
                "workers": several,
            },
            tune_config=tune.TuneConfig(
                search_alg=InTurn(several, ray_nodes(), config.resources.max_concurrent) if several else None,
                max_concurrent_trials=None if several else config.resources.max_concurrent,
                scheduler=scheduler(config, (plan.folder(t).curve() for t in earlier)),
                reuse_actors=True,  # a process that trained one trial trains the next: starting one costs ten seconds of imports
            ),
            run_config=tune.RunConfig(
                name="tune",
                **tune_storage(config.remote, config.directory),
                failure_config=tune.FailureConfig(max_failures=config.resources.max_failures),
                callbacks=[TrialWatcher(plan, pending, follower, board)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:  # Tune's own state; ours is in the trials' folders
            files, place = open_remote(config.remote or str(config.directory))
            with contextlib.suppress(OSError):
                files.rm(f"{place}/tune", recursive=True)
