"""A study's grid of trials on Ray Tune: finished trials are skipped, the others are trained, and MLflow follows."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError

from cotd.errors import CotdError
from cotd.progress import say, steady_stream
from cotd.storage.sync import sync_study
from cotd.storage.tracking_store import attempt, friendly_errors
from cotd.storage.working_copy import copy_of
from cotd.study.config import StudyConfig
from cotd.study.grid import MANY_TRIALS
from cotd.study.stages import write_best
from cotd.tracking.runs import StudyTracker
from cotd.training.folder import rank
from cotd.training.trial import Trial
from pipelines.annotate.files import AnnotationFiles, read_annotations
from pipelines.cluster.lock import only_one
from pipelines.cluster.resources import needs_by_size, ray_nodes
from pipelines.cluster.runtime_env import require_lasting
from pipelines.cluster.session import ignore_interrupts, ray_session, require_shared
from pipelines.sweep.board import Board
from pipelines.sweep.follower import MlflowFollower
from pipelines.sweep.gang_queue import GangQueue
from pipelines.sweep.plan import Plan, plan_study
from pipelines.sweep.search import METRIC, scheduler
from pipelines.sweep.share import run_and_share
from pipelines.sweep.trial import run_trial
from pipelines.sweep.vocabulary import check_vocabulary
from pipelines.sweep.watch import TrialWatcher, error_line

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours to handle
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow is the only log
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's state is never restored
}
SWEEP = uuid.uuid4().hex  # names this process to the sweeps that share a study on remote storage


@sync_study
def sweep(config: StudyConfig, yes: bool = False) -> dict[str, Any]:
    """Trains every trial of the study that is not done.

    Args:
        yes: do not ask whether a very large grid is meant.

    Returns:
        `trials`: their number; `trained` (by this sweep); `pruned` (samples of a search that were given up); `failed` (trial id → last
        line of its error); `best` (of all finished trials by validation: trial_id, title and validation_accuracy, or None);
        `behind` (number of trials whose end MLflow lacks, because it has stopped responding).

    Raises:
        CotdError: bad input, before any worker starts.

    Example:
        >>> outcome = cotd.sweep(study)
        >>> outcome["trials"], outcome["failed"]
        (1, {})
    """
    confirm_size(config, yes)
    require_lasting(config)
    with only_one(config.directory, f"sweeping {config.name}", "finished trials are kept and will not be trained again."):
        return sweep_alone(config)


def confirm_size(config: StudyConfig, yes: bool) -> None:
    """Asks whether a very large grid is meant.

    Raises:
        CotdError: it is not, or nobody is at a terminal.
    """
    trials = config.grid.count_all() * (config.search.samples if config.search else 1)
    if trials <= MANY_TRIALS or yes:
        return
    size = f"{config.name} has up to {trials:,} trials"
    if not sys.stdin.isatty():
        raise CotdError(f"{size}. Nobody is at a terminal to agree: shorten the lists of grid, or run again with --yes.")
    if input(f"{size}; continue? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CotdError("not started; nothing was trained.")


def sweep_alone(config: StudyConfig) -> dict[str, Any]:
    """`sweep`, when no other process works on the study."""
    plan = plan_study(config)
    tracker = StudyTracker(config)
    pending = plan.pending()
    check_vocabulary(plan, pending)
    ended = plan.without(pending)
    elsewhere: list[Trial] = []  # trained by other sweeps
    status, behind = "KILLED", 0
    with friendly_errors(tracker.uri):
        tracker.start_study()
    follower = MlflowFollower(plan, tracker).start()
    with steady_stream():
        try:
            if plan.annotations and (annotated := read_annotations(config)):
                attempt(lambda: tracker.log_teacher(annotated[1], AnnotationFiles.of(config).page))
            for trial in ended:
                follower.note(trial, ended=True)
            say(f"  {len(plan.trials)} trials: {len(ended)} done before, {len(pending)} to train")
            if pending:
                with ray_session():
                    if not config.remote:
                        require_shared(plan.examples)
                    elsewhere = run_and_share(plan, pending, partial(run_trials, plan, follower=follower))
            failed = {t.id: error_line(plan.folder(t).error) for t in plan.pending()}
            status = "FAILED" if failed else "FINISHED"
        finally:
            with ignore_interrupts():
                others = {t.id for t in elsewhere}
                own = [t for t in pending if t.id not in others]
                behind = follower.close(own)
                if attempt(lambda: tracker.end_study(status)) or behind:
                    say(f"  MLflow does not respond and lacks the end of {behind} trials, which are in their folders.")
                    say("  Run the same command again when it does: they are written then, and nothing is trained twice.")
    best = best_done(plan)
    write_best(config, best)
    pruned = sum(plan.folder(t).pruned for t in own)
    return {
        "trials": len(plan.trials), "trained": len(own) - len(failed) - pruned, "pruned": pruned, "failed": failed,
        "best": best, "behind": behind,
    }  # fmt: skip


def one_each(values: Iterable[Any]) -> Any:
    """A parameter that has the next of these values in each trial. Tune's own grid copies all of them for each trial."""
    remaining = iter(list(values))
    return tune.sample_from(lambda spec: next(remaining))


def best_done(plan: Plan) -> dict[str, Any] | None:
    """The best finished trial by validation: `trial_id`, `title` and `validation_accuracy`."""
    done = [(t, plan.folder(t).result()) for t in plan.trials if plan.folder(t).done]
    if not done:
        return None
    trial, result = max(done, key=rank)
    return {"trial_id": trial.id, "title": trial.title, METRIC: result["validation"]["accuracy"]}


def run_trials(plan: Plan, pending: list[Trial], follower: MlflowFollower, stale: dict[str, int]) -> list[Trial]:
    """Runs trials on Ray Tune in the order given, as many at once as their resources allow.

    Args:
        stale: trial → number of another sweep's lease that has lapsed; see `pipelines.sweep.share`.

    Returns:
        The trials that another sweep of the study works on.
    """
    os.environ.update(TUNE_ENVIRONMENT)
    config = plan.config
    by_size = needs_by_size(config, [t.size for t in pending])
    needs = {str(plan.folder(t).path): by_size[t.size] for t in pending}
    multi_worker = {folder: n for folder, n in needs.items() if n.workers > 1}
    same_needs = len(set(by_size.values())) == 1
    settings = config.model_dump()
    for trial in pending:
        plan.folder(trial).write_trial(trial, settings)
    if config.remote:
        copy_of(config.remote, config.directory).push()  # what workers pull
    earlier = plan.without(pending) if config.search else []
    best = best_done(plan)
    with (
        tempfile.TemporaryDirectory(prefix="cotd-tune-") as state,
        Board({t.id: plan.cost(t) for t in pending}, pending, (best[METRIC], best["title"]) if best else None) as board,
    ):
        watcher = TrialWatcher(plan, pending, follower, board)
        tuner = tune.Tuner(
            tune.with_resources(
                run_trial,
                by_size[pending[0].size].in_tune() if same_needs else lambda params: needs[params["folder"]].in_tune(),
            ),
            param_space={
                "storage": config.remote,
                "sweep": SWEEP,
                "stale": one_each(stale.get(t.id) for t in pending),
                "directory": str(config.directory),
                "folder": one_each(needs),
                "examples": plan.examples,
                "annotations": plan.annotations,
                "teacher_test": plan.teacher_test,
                "held_out_rationales": plan.held_out_rationales,
                "cache": plan.cache,
                "provenance": plan.provenance,
                "workers": one_each(multi_worker.get(folder) for folder in needs),
            },
            tune_config=tune.TuneConfig(
                num_samples=len(pending),
                search_alg=GangQueue(multi_worker, ray_nodes, config.resources.max_concurrent) if multi_worker else None,
                max_concurrent_trials=None if multi_worker else config.resources.max_concurrent,
                scheduler=scheduler(config, (plan.folder(t).curve() for t in earlier)),
                reuse_actors=True,  # a process that trained one trial trains the next: starting one takes ten seconds of imports
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=state,  # of no further use: what counts is in the trials' folders
                failure_config=tune.FailureConfig(max_failures=config.resources.max_failures),
                callbacks=[watcher],
                verbose=0,
            ),
        )
        with explain_out_of_memory():
            tuner.fit()
    return watcher.elsewhere


@contextlib.contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Says what to do where Ray has killed a worker because its node ran out of memory, which ends all of Tune's trials."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error.__cause__, OutOfMemoryError):
            raise
        raise CotdError(
            "a machine ran out of memory, and Ray ended a training there. End what else uses its memory; or let fewer trials train at "
            "once (resources.max_concurrent), or with less memory each (training.micro_batch_size, training.gradient_checkpointing). "
            "Then run the same command again: what is finished is kept, and the others go on from their last checkpoint."
        ) from error
