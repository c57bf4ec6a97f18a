"""The grid of trials on Ray Tune: what is done is skipped, what is left is trained, MLflow follows from the folders."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import ray
from ray import train, tune

from cotd.config import StudyConfig
from cotd.errors import CotdError
from cotd.grid import MANY_TRIALS
from cotd.progress import say, steady_stream
from cotd.storage import copy_of, in_working_copy, light, on_storage, open_remote
from cotd.system_metrics import sample_load
from cotd.tracking import StudyTracker, attempt, friendly_errors
from cotd.trials import Trial, TrialFolder
from pipelines.annotation_files import AnnotationFiles, read_annotations, read_rationales, read_teacher_test
from pipelines.board import Board
from pipelines.cluster import ignore_interrupts, ray_session, require_shared
from pipelines.follower import MlflowFollower
from pipelines.locking import only_one
from pipelines.promote import merit
from pipelines.resources import InTurn, needs_by_size, ray_nodes
from pipelines.runtime_env import require_lasting
from pipelines.search import METRIC, scheduler
from pipelines.study import Plan, plan_study
from pipelines.workers import train_together


@on_storage
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
            failed = {t.id: last_line(plan.folder(t).error) for t in plan.pending()}
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
        plan.folder(trial).write_trial(trial, config)
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


def tune_storage(remote: str | None, directory: Path) -> dict[str, Any]:
    """Where Tune keeps its own state, which every node must reach: the study's storage."""
    if remote is None:
        return {"storage_path": str(directory)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    files, place = open_remote(remote)
    return {"storage_path": place, "storage_filesystem": PyFileSystem(FSSpecHandler(files))}


def run_trial(params: dict[str, Any]) -> None:
    """One trial, in a Ray worker, or in several that this one starts and follows."""
    needs = params["workers"].get(params["folder"])
    if needs is None:
        threads = max(1, int(tune.get_context().get_trial_resources().head_cpus))
        train_here({**params, "threads": threads})
    else:
        storage = tune_storage(params["storage"] and f"{params['storage']}/tune", Path(params["directory"]) / "tune")
        train_together(train_here, {**params, "threads": needs.threads}, needs, storage)


@in_working_copy
def train_here(params: dict[str, Any]) -> None:
    """A trial, or one worker's part of it, in this process. A failure leaves its traceback in the trial's folder."""
    if not ray.get_gpu_ids():  # Ray hides GPUs from who has asked for others, and not from who has asked for none
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    from cotd.training import train_trial

    torch.set_num_threads(params["threads"])
    report = train.report if "worker" in params else tune.report
    folder, first = TrialFolder(Path(params["folder"])), not params.get("worker")
    trial = folder.trial()
    if folder.done:  # it failed after its end, and is tried again
        report({"step": folder.result()["steps"], METRIC: folder.result()["validation"]["accuracy"]})
        return
    if first:
        folder.error.unlink(missing_ok=True)  # of the attempt before this one
    try:
        with sample_load(folder.system_metrics) if first else contextlib.nullcontext():
            result = train_trial(
                trial, folder, params["reviews"], params["annotations"], params["provenance"], report,
                read_teacher_test(params["teacher_test"]), read_rationales(params["held_out_rationales"]), params["cache"],
            )  # fmt: skip
    except Exception:
        with contextlib.suppress(OSError):  # on a full disk the driver is told all the same
            folder.error.write_text(traceback.format_exc(), encoding="utf-8")
        raise
    report({"step": result["steps"], METRIC: result["validation"]["accuracy"]} if result else {})


class TrialWatcher(tune.Callback):
    """Tells the board and MLflow's follower what Tune tells of the trials. Lives in the driver alone."""

    def __init__(self, plan: Plan, pending: list[Trial], follower: MlflowFollower, board: Board):
        self.trials = {str(plan.folder(t).path): t for t in pending}
        self.follower = follower
        self.board = board

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks to restore an experiment; ours is restored from the trials' folders."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        ours, _folder = self._of(trial)
        self.board.started(ours)
        self.follower.note(ours)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        ours, _folder = self._of(trial)
        self.board.scored(ours, int(result["step"]), result.get(METRIC))
        self.follower.note(ours)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        ours, folder = self._of(trial)
        say(f"  {ours.title}: failed, and is tried again from its last checkpoint: {self._why(trial, folder)}")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        ours, folder = self._of(trial)
        if folder.done:
            result = folder.result()
            self.board.ended_as(ours, "done", describe_result(result), result["validation"]["accuracy"])
        else:  # ASHA has stopped it
            point = (folder.curve() or [{"step": 0}])[-1]
            folder.write_pruned(point)
            self.board.ended_as(ours, "pruned", f"given up at step {point['step']:,}, validation {point.get(METRIC, 0):.1%}")
        self.follower.note(ours, ended=True)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        ours, folder = self._of(trial)
        why = self._why(trial, folder)
        if not folder.error.is_file():
            with contextlib.suppress(OSError):
                folder.error.write_text(why + "\n", encoding="utf-8")
        self.board.ended_as(ours, "failed", f"failed: {why}")
        self.follower.note(ours, ended=True)

    def _why(self, trial: Any, folder: TrialFolder) -> str:
        """The last line of a trial's error: its own, or, where its worker died, what Ray says of that."""
        if folder.error.is_file():
            return last_line(folder.error)
        try:
            told = Path(trial.error_file).read_text(encoding="utf-8").rpartition("Failure #")[2].strip().splitlines()[1:]
        except (OSError, TypeError):
            told = []
        lines = [line.strip() for line in told if line.strip()] or ["Ray does not say why"]
        return lines[-1] if any("Traceback" in line for line in lines) else f"its worker died: {lines[0]}"

    def _of(self, trial: Any) -> tuple[Trial, TrialFolder]:
        folder, config = trial.config["folder"], self.follower.tracker.config
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
