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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from cotd.storage.working_copy import WorkingCopy, copy_folder, copy_of, is_small

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
    worker 0 is pushed.
    """

    @functools.wraps(train)
    def run(params: dict[str, Any]) -> R:
        from filelock import FileLock

        url = params.get("storage")
        if not url:
            return train(params)
        worker = params.get("worker", 0)
        name = copy_folder(url).name + (f"-{worker}" if worker else "")
        copies = Path(tempfile.gettempdir()) / f"cotd-{getpass.getuser()}" / name
        copies.mkdir(parents=True, exist_ok=True)
        for part in ("data", "annotations"):
            with FileLock(copies / f".lock-{part}"):  # trials of one machine share them
                WorkingCopy(f"{url}/{part}", copies / part).pull()
        moved = {key: moved_path(value, params["directory"], copies) for key, value in params.items()}
        folder = Path(moved["folder"])
        copy = WorkingCopy(f"{url}/trials/{folder.name}", folder)
        copy.pull()
        with contextlib.nullcontext() if worker else copy.pushing():
            result = train(moved)
        shutil.rmtree(folder, ignore_errors=True)  # all of it is on the remote storage now
        return result

    return run


def moved_path(value: Any, old: str, new: Path) -> Any:
    """A path in the folder `old` as the same in `new`, of the same type; anything else unchanged."""
    if isinstance(value, (str, Path)) and str(value).startswith(old):
        return type(value)(str(value).replace(old, str(new), 1))
    return value
