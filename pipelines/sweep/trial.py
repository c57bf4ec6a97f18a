"""One trial in a Ray worker."""

from __future__ import annotations

import contextlib
import os
import traceback
from pathlib import Path
from typing import Any

import ray
from ray import train, tune

from cotd.storage.sync import sync_trial
from cotd.storage.urls import open_remote
from cotd.tracking.system_metrics import sample_load
from cotd.training.folder import TrialFolder
from pipelines.annotate.files import read_rationales, read_teacher_test
from pipelines.sweep.search import METRIC
from pipelines.sweep.workers import train_together


def tune_storage(remote: str | None, directory: Path) -> dict[str, Any]:
    """Arguments that have Tune keep its own state where every node can reach it: in the study's storage."""
    if remote is None:
        return {"storage_path": str(directory)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    files, path = open_remote(remote)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(files))}


def run_trial(params: dict[str, Any]) -> None:
    """Trains a trial in this Ray worker, or in several that this one starts and follows."""
    needs = params["workers"].get(params["folder"])
    if needs is None:
        threads = max(1, int(tune.get_context().get_trial_resources().head_cpus))
        train_here({**params, "threads": threads})
    else:
        storage = tune_storage(params["storage"] and f"{params['storage']}/tune", Path(params["directory"]) / "tune")
        train_together(train_here, {**params, "threads": needs.threads}, needs, storage)


@sync_trial
def train_here(params: dict[str, Any]) -> None:
    """Trains a trial, or one worker's part of it, in this process. A failure leaves its traceback in the trial's folder."""
    if not ray.get_gpu_ids():  # Ray hides other trials' GPUs from a worker, but not from one that reserved none
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    from cotd.training.train import train_trial

    torch.set_num_threads(params["threads"])
    report = train.report if "worker" in params else tune.report
    folder, first = TrialFolder(Path(params["folder"])), not params.get("worker")
    if folder.done:  # it failed after its end, and is tried again
        report({"step": folder.result()["steps"], METRIC: folder.result()["validation"]["accuracy"]})
        return
    if first:
        folder.error.unlink(missing_ok=True)  # of the attempt before
    try:
        with sample_load(folder.system_metrics) if first else contextlib.nullcontext():
            result = train_trial(
                folder.trial(), folder, params["examples"], params["annotations"], params["provenance"], report,
                read_teacher_test(params["teacher_test"]), read_rationales(params["held_out_rationales"]), params["cache"],
            )  # fmt: skip
    except Exception:
        with contextlib.suppress(OSError):  # on a full disk the error still reaches the driver
            folder.error.write_text(traceback.format_exc(), encoding="utf-8")
        raise
    report({"step": result["steps"], METRIC: result["validation"]["accuracy"]} if result else {})
