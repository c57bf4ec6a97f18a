"""One trial in a Ray worker."""

from __future__ import annotations

import contextlib
import os
import traceback
from pathlib import Path
from typing import Any

import ray
from ray import train, tune

from cotd.storage.lease import LeaseLost
from cotd.storage.sync import hold_lease, sync_trial
from cotd.tracking.system_metrics import sample_load
from cotd.training.folder import TrialFolder
from cotd.utils.memory import collect_seldom
from pipelines.annotate.files import read_rationales, read_teacher_test
from pipelines.sweep.search import METRIC
from pipelines.sweep.workers import train_together

ELSEWHERE = "elsewhere"  # reported of a trial that another sweep of the study works on, or has ended


def run_trial(params: dict[str, Any]) -> None:
    """Trains a trial in this Ray worker, or in several that this one starts and follows, unless another sweep does."""
    if params["storage"] is None:
        train_or_follow(params)
        return
    trial = Path(params["folder"]).name
    with hold_lease(params["storage"], trial, params["sweep"], params["stale"]) as lease:
        if lease is not None:
            with contextlib.suppress(LeaseLost):
                train_or_follow({**params, "lease": lease})
                return
    tune.report({"step": 0, METRIC: 0.0, ELSEWHERE: True})


def train_or_follow(params: dict[str, Any]) -> None:
    needs = params["workers"]
    if needs is None:
        threads = max(1, int(tune.get_context().get_trial_resources().head_cpus))
        train_here({**params, "threads": threads})
    else:
        train_together(train_here, {**params, "threads": needs.threads}, needs)


@sync_trial
def train_here(params: dict[str, Any]) -> None:
    """Trains a trial, or one worker's part of it, in this process. A failure leaves its traceback in the trial's folder."""
    if not ray.get_gpu_ids():  # Ray hides other trials' GPUs from a worker, but not from one that reserved none
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    collect_seldom()
    import torch

    from cotd.training.train import train_trial

    torch.set_num_threads(params["threads"])
    send, lease = train.report if "worker" in params else tune.report, params.get("lease")

    def report(point: dict[str, Any]) -> None:
        if lease is not None and lease.lost:
            raise LeaseLost("another sweep has taken this trial over")
        send(point)

    folder, first = TrialFolder(Path(params["folder"])), not params.get("worker")
    if folder.done:  # it failed after its end, and is tried again; or another sweep, which has left no lease, has ended it
        ended = {ELSEWHERE: True} if lease is not None and lease.number == 0 else {}
        report({"step": folder.result()["steps"], METRIC: folder.result()["validation"]["accuracy"], **ended})
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
