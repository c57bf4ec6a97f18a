"""Storage that is no folder: any place that fsspec knows, of which each machine keeps a working copy.

Commands and trials read and write files; `storage: s3://bucket/runs` is served by copies. A command's copy is pulled when
it begins and pushed when it ends; a trial's worker pulls the study's data and the trial's folder, pushes the folder while it
trains, and pushes `result.json` last, so that a trial that is done elsewhere is complete there.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from fsspec.implementations.local import LocalFileSystem

from cotd.storage.urls import open_remote
from cotd.utils.files import replacing, write_json

MANIFEST = ".copy.json"
PUSH_SECONDS = 5.0  # between looks at what a trial has written
STATE = "trainer_state.json"  # what the Trainer writes last into a checkpoint


class WorkingCopy:
    """A folder here that stands for one elsewhere. One process at a time uses a copy; many machines may have one each.

    What was copied when is kept in the folder, so that only changes travel. Of what is removed here, checkpoints and errors
    are removed elsewhere, and nothing else: a copy that is lost loses no results.

    Args:
        url: an fsspec URL of the folder elsewhere, which need not exist.
        folder: the folder here, which need not either.
    """

    def __init__(self, url: str, folder: Path):
        self.files, self.root = open_remote(url)
        self.root = self.root.rstrip("/")
        self.url = url
        self.folder = folder
        manifest = folder / MANIFEST
        self._known: dict[str, list[str]] = json.loads(manifest.read_text()) if manifest.is_file() else {}

    def pull(self, part: str = "", wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Copies here what is new or different elsewhere; what is gone there is removed here.

        Args:
            part: only this folder within.
            wanted: says of a file's path within the folder whether it is to be copied.
        """
        there = self._there(part)
        for name in sorted(filter(wanted, there), key=results_last):
            target = self.folder / name
            if name in self._known and self._known[name][1] == there[name] and target.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with replacing(target) as temporary:
                    self.files.get_file(f"{self.root}/{name}", str(temporary))
            except FileNotFoundError:  # a checkpoint that was replaced meanwhile
                continue
            self._known[name] = [local_state(target), there[name]]
        for name in [n for n in self._known if n.startswith(part) and n not in there]:
            (self.folder / name).unlink(missing_ok=True)
            del self._known[name]
        self._save()

    def push(self) -> None:
        """Copies what is new or different here to elsewhere, results last, and of checkpoints only whole ones."""
        here = self._here()
        for name, state in sorted(here.items(), key=lambda item: results_last(item[0])):
            if self._known.get(name, [""])[0] == state:
                continue
            target = f"{self.root}/{name}"
            try:
                self._put(self.folder / name, target)
            except FileNotFoundError:  # removed here meanwhile
                continue
            self._known[name] = [state, remote_state(self.files.info(target))]
        for name in [n for n in self._known if is_temporary(n) and not (self.folder / n).is_file()]:
            with contextlib.suppress(FileNotFoundError):
                self.files.rm_file(f"{self.root}/{name}")
            del self._known[name]
        self._save()

    @contextlib.contextmanager
    def pushing(self, seconds: float = PUSH_SECONDS) -> Iterator[None]:
        """Pushes now and then for the duration of a block, and once more at its end, whatever that is.

        Raises:
            OSError: the last push failed. Those before it are tried again by the next.
        """
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(seconds):
                with contextlib.suppress(OSError):
                    self.push()

        thread = threading.Thread(target=run, name="pushing", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.push()

    def _put(self, file: Path, target: str) -> None:
        """Puts a file whole: object stores do that by themselves, folders by a rename."""
        self.files.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        if isinstance(self.files, LocalFileSystem):
            with replacing(Path(target)) as temporary:
                self.files.put_file(str(file), str(temporary))
        else:
            self.files.put_file(str(file), target)

    def _there(self, part: str) -> dict[str, str]:
        """File's path within the folder → what changes with its content, elsewhere."""
        self.files.invalidate_cache()
        place = f"{self.root}/{part}".rstrip("/")
        if not self.files.exists(place):
            return {}
        found = self.files.find(place, detail=True)
        names = {path[len(self.root) :].strip("/"): remote_state(info) for path, info in found.items()}
        return {name: state for name, state in names.items() if not name.endswith((".part", MANIFEST))}

    def _here(self) -> dict[str, str]:
        found = {}
        for file in self.folder.rglob("*"):
            name = file.relative_to(self.folder).as_posix()
            if name.endswith((".part", MANIFEST)) or file.name.startswith(".lock"):
                continue
            checkpoint = next((p for p in file.parents if p.name.startswith("checkpoint-")), None)
            if checkpoint is not None and not (checkpoint / STATE).is_file():
                continue
            with contextlib.suppress(FileNotFoundError):
                if file.is_file():
                    found[name] = local_state(file)
        return found

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / MANIFEST, self._known)


def results_last(name: str) -> tuple[bool, bool, str]:
    """Sorts files so that what says that others are complete follows them."""
    return name.endswith("result.json"), name.endswith(STATE), name


def is_temporary(name: str) -> bool:
    """Whether a trial's file is meant to go when it has served."""
    return "checkpoints/" in name or name.endswith("error.txt")


def is_small(name: str) -> bool:
    """Whether a command needs a file: checkpoints are for trials, students are fetched one by one."""
    return not any(part in ("checkpoints", "student") for part in name.split("/"))


def local_state(file: Path) -> str:
    """Changes with a file here."""
    stat = file.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def remote_state(info: dict[str, Any]) -> str:
    """Changes with a file elsewhere, by what file systems tell of it: a hash, or the time it was written."""
    told = [str(info[k]) for k in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created") if k in info]
    return " ".join([str(info.get("size")), *told])


def copy_folder(url: str) -> Path:
    """Where this machine's commands keep their working copies of a place elsewhere."""
    from cotd.utils.home import home

    return home() / "studies" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


@functools.cache
def copy_of(url: str, folder: Path) -> WorkingCopy:
    """This process's one working copy of a study."""
    return WorkingCopy(url, folder)


P = ParamSpec("P")
R = TypeVar("R")


class Stored(Protocol):
    """What lies in a folder here that may stand for one elsewhere: a study, say."""

    @property
    def remote(self) -> str | None: ...

    @property
    def directory(self) -> Path: ...


S = TypeVar("S", bound=Stored)


def sync_study(work: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Has a command that works in a study's folder do so in a copy, where the study's storage is elsewhere."""

    @functools.wraps(work)
    def run(config: S, *args: P.args, **kwargs: P.kwargs) -> R:
        if config.remote is None:
            return work(config, *args, **kwargs)
        copy = copy_of(config.remote, config.directory)
        copy.pull(wanted=is_small)
        try:
            return work(config, *args, **kwargs)
        finally:
            copy.push()

    return run


def moved_path(value: Any, there: str, place: Path) -> Any:
    """A path in one copy as a path in another, of the same type; anything else as it is."""
    if isinstance(value, (str, Path)) and str(value).startswith(there):
        return type(value)(str(value).replace(there, str(place), 1))
    return value


def sync_trial(train: Callable[[dict[str, Any]], R]) -> Callable[[dict[str, Any]], R]:
    """Has a trial's worker train in a copy of its own, where the study's storage is elsewhere.

    Of the parameters, `storage` is the study's URL or None, `directory` the driver's copy, `folder` the trial's folder in
    it; every path in it is made one in the worker's copy. Of several workers of one trial, `worker` says which this is: the
    first one's copy is the one that is pushed.
    """

    @functools.wraps(train)
    def run(params: dict[str, Any]) -> R:
        from filelock import FileLock

        url = params.get("storage")
        if not url:
            return train(params)
        worker = params.get("worker", 0)
        name = copy_folder(url).name + (f"-{worker}" if worker else "")
        place = Path(tempfile.gettempdir()) / f"cotd-{getpass.getuser()}" / name
        place.mkdir(parents=True, exist_ok=True)
        for part in ("data", "annotations"):
            with FileLock(place / f".lock-{part}"):  # trials of one machine share them
                WorkingCopy(f"{url}/{part}", place / part).pull()
        there = params["directory"]
        moved = {k: moved_path(v, there, place) for k, v in params.items()}
        folder = Path(moved["folder"])
        copy = WorkingCopy(f"{url}/trials/{folder.name}", folder)
        copy.pull()
        with contextlib.nullcontext() if worker else copy.pushing():
            result = train(moved)
        shutil.rmtree(folder, ignore_errors=True)  # all of it is elsewhere now
        return result

    return run
