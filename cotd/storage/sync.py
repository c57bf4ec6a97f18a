"""Work on remote storage: commands and trials read and write files, and do so in working copies.

A command's copy is pulled when it begins and pushed when it ends. A trial's worker pulls the study's data and the trial's
folder, pushes the folder while it trains, and pushes `result.json` last: a trial that is done anywhere is complete remotely.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from filelock import FileLock, Timeout

from cotd.storage.lease import Lease, machine_name
from cotd.storage.urls import open_remote
from cotd.storage.working_copy import WorkingCopy, copy_folder, copy_of, is_small

TRIAL_LEASES, COMMAND_LEASES = "leases/trials", "leases/commands"
P = ParamSpec("P")
R = TypeVar("R")


class Stored(Protocol):
    """What has a folder that may be a working copy, such as a study."""

    @property
    def remote(self) -> str | None: ...

    @property
    def directory(self) -> Path: ...


S = TypeVar("S", bound=Stored)


def sync_study(work: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Lets a command that works in a study's folder do so in a copy, if the study's storage is remote."""

    @functools.wraps(work)
    def run(config: S, *args: P.args, **kwargs: P.kwargs) -> R:
        if config.remote is None:
            return work(config, *args, **kwargs)
        copy = copy_of(config.remote, config.directory)
        copy.pull(select=is_small)
        try:
            return work(config, *args, **kwargs)
        finally:
            copy.push()

    return run


def sync_trial(train: Callable[[dict[str, Any]], R]) -> Callable[[dict[str, Any]], R]:
    """Lets a trial's worker train in a copy of its own, if the study's storage is remote.

    Of the parameters, `storage` is the study's URL or None, `directory` the driver's copy, `folder` the trial's folder in it;
    every path in the driver's copy becomes one in the worker's. `worker` numbers the workers of one trial: only the copy of
    worker 0 is pushed, as long as the trial's `lease` is held.
    """

    @functools.wraps(train)
    def run(params: dict[str, Any]) -> R:
        url = params.get("storage")
        if not url:
            return train(params)
        worker = params.get("worker", 0)
        copies = copies_folder(url, worker)
        for part in ("data", "annotations"):
            with FileLock(copies / f".lock-{part}"):  # trials of one machine share them
                WorkingCopy(f"{url}/{part}", copies / part).pull()
        moved = {key: moved_path(value, params["directory"], copies) for key, value in params.items()}
        folder = Path(moved["folder"])
        lease = params.get("lease")
        copy = WorkingCopy(f"{url}/trials/{folder.name}", folder, *([lease.require] if lease else []))
        copy.pull()
        with contextlib.nullcontext() if worker else copy.pushing():
            result = train(moved)
        shutil.rmtree(folder, ignore_errors=True)  # all of it is on the remote storage now
        return result

    return run


@contextlib.contextmanager
def hold_lease(url: str, trial: str, sweep: str, stale: int | None) -> Iterator[Lease | None]:
    """Keeps a trial for this process: yields its lease, or None where another sweep works on it.

    Args:
        url: of the study. trial: its id. sweep: names the sweep.
        stale: the number of a lease that shows no life.
    """
    lock = trial_lock(url, trial)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield None
        return
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        lease = Lease(f"{url}/{TRIAL_LEASES}/{trial}", machine_name(copies_folder(url)), sweep)
        if not lease.acquire(stale):
            yield None
            return
        try:
            with lease.renewing(trial):  # where it is lost, the next push says so
                yield lease
        finally:
            with contextlib.suppress(Exception):  # others will take it over for lack of life
                lease.release(done=lease.files.exists(f"{open_remote(url)[1]}/trials/{trial}/result.json"))


def is_abandoned(url: str, trial: str, holder: dict[str, Any]) -> bool:
    """Whether the process of this machine that had a lease has died: its lock is free."""
    if holder.get("machine") != machine_name(copies_folder(url)):
        return False
    try:
        with trial_lock(url, trial).acquire(timeout=0):
            return True
    except Timeout:
        return False


def trial_lock(url: str, trial: str) -> FileLock:
    folder = copies_folder(url) / "locks"
    folder.mkdir(exist_ok=True)
    return FileLock(folder / trial, thread_local=False)


def copies_folder(url: str, worker: int = 0) -> Path:
    """Where trials of a study that run on this machine have their copies; those of a trial's other workers are apart."""
    name = copy_folder(url).name + (f"-{worker}" if worker else "")
    folder = Path(tempfile.gettempdir()) / f"cotd-{getpass.getuser()}" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def moved_path(value: Any, old: str, new: Path) -> Any:
    """A path in the folder `old` as the same in `new`, of the same type; anything else unchanged."""
    if isinstance(value, (str, Path)) and str(value).startswith(old):
        return type(value)(str(value).replace(old, str(new), 1))
    return value
