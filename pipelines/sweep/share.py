"""Sweeps of one study on several machines, which share it on remote storage: each trial is trained by one of them."""

from __future__ import annotations

import time
from functools import partial
from typing import Protocol

from cotd.progress import say
from cotd.storage.lease import PATIENCE_SECONDS, LeaseWatch
from cotd.storage.sync import TRIAL_LEASES, is_abandoned
from cotd.storage.working_copy import copy_of, is_small
from cotd.training.trial import Trial
from pipelines.sweep.plan import Plan

LOOK_SECONDS = 5.0  # between looks at what other sweeps do


class Run(Protocol):
    """Trains trials; returns those that another sweep works on."""

    def __call__(self, pending: list[Trial], *, stale: dict[str, int]) -> list[Trial]: ...


def run_and_share(plan: Plan, pending: list[Trial], run: Run) -> list[Trial]:
    """Runs trials until all have ended, here or in other sweeps of the study; returns those that others have trained.

    What another sweep works on is waited for, and taken over if that sweep fails or shows no life.
    """
    url = plan.config.remote
    if url is None:
        return run(pending, stale={})
    watch = LeaseWatch(f"{url}/{TRIAL_LEASES}", partial(is_abandoned, url), PATIENCE_SECONDS)
    others: list[Trial] = []
    waiting = run(pending, stale={})
    if waiting:
        say(f"  waiting for {len(waiting)} trials that another sweep of the study trains; Ctrl-C loses nothing")
    copy = copy_of(url, plan.config.directory)
    while waiting:
        held, stale = watch.look()
        let_go = [t for t in waiting if t.id not in held]
        for trial in let_go:
            copy.pull(f"trials/{trial.id}", is_small)
        ended = {t.id for t in let_go if plan.folder(t).done or plan.folder(t).pruned}
        others += [t for t in let_go if t.id in ended]
        left = [t for t in let_go if t.id not in ended]
        waiting = [t for t in waiting if t.id in held]
        if left:
            say(f"  {len(left)} trials were left by another sweep, and are taken over")
            waiting += run(left, stale=stale)
        elif waiting:
            time.sleep(LOOK_SECONDS)
    return others
