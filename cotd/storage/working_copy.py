"""Working copies of remote storage: local folders that stand for a folder at an fsspec URL.

Hand-written, as `fsspec.generic.rsync` compares times across machines, keeps no order, and replaces files in place.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from cotd.progress import say
from cotd.storage.urls import open_remote
from cotd.utils.background import repeating
from cotd.utils.files import replacing, write_json
from cotd.utils.home import home
from cotd.utils.text import describe_error

MANIFEST = ".copy.json"
PUSH_SECONDS = 5.0  # between looks at what a trial has written
LONGEST_PAUSE = 60.0  # between pushes while the remote storage fails
LAST_OF_CHECKPOINT = "trainer_state.json"  # what the Trainer writes last
STATE_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")


class WorkingCopy:
    """A local folder that stands for a remote one. One process at a time uses a copy; many machines may have one each.

    A manifest in the folder says what was copied in which state, so that only changes are copied. Of the files that are removed
    here, only checkpoints and errors are removed remotely: a copy that is lost loses no results.

    Args:
        url: an fsspec URL of the remote folder, which need not exist.
        folder: the local folder, which need not exist either.
    """

    def __init__(self, url: str, folder: Path):
        self.files, root = open_remote(url)
        self.root = root.rstrip("/")
        self.url = url
        self.folder = folder
        manifest = folder / MANIFEST
        # path in the folder → local and remote state when it was last copied
        self._known: dict[str, list[str]] = json.loads(manifest.read_text()) if manifest.is_file() else {}

    def pull(self, part: str = "", select: Callable[[str], bool] = lambda name: True) -> None:
        """Copies remote files that are new or changed; removes local ones that are gone remotely and unchanged here.

        Args:
            part: only this folder within.
            select: whether to copy a file, by its path within the folder.

        Raises:
            OSError: the remote storage failed; no local file has been removed.
        """
        remote = self._remote_states(part)
        for name in sorted(filter(select, remote), key=results_last):
            target = self.folder / name
            if name in self._known and self._known[name][1] == remote[name] and target.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with (
                contextlib.suppress(FileNotFoundError),
                replacing(target) as temporary,
            ):  # a checkpoint may be replaced meanwhile
                self.files.get_file(f"{self.root}/{name}", str(temporary))
                self._known[name] = [local_state(temporary), remote[name]]
        for name in [n for n in self._known if n.startswith(part) and n not in remote]:
            with contextlib.suppress(FileNotFoundError):
                if local_state(self.folder / name) == self._known[name][0]:
                    (self.folder / name).unlink()
            del self._known[name]
        self._save()

    def push(self) -> None:
        """Copies local files that are new or changed, results last, and of checkpoints only whole ones."""
        local = self._local_states()
        for name in sorted(local, key=results_last):
            if name in self._known and self._known[name][0] == local[name]:
                continue
            target = f"{self.root}/{name}"
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                self._put(self.folder / name, target)
                self._known[name] = [local[name], remote_state(self.files.info(target))]
        for name in [n for n in self._known if is_temporary(n) and not (self.folder / n).is_file()]:
            with contextlib.suppress(FileNotFoundError):
                self.files.rm_file(f"{self.root}/{name}")
            del self._known[name]
        self._save()

    @contextlib.contextmanager
    def pushing(self, seconds: float = PUSH_SECONDS) -> Iterator[None]:
        """Pushes every few seconds during a block, and once more at its end, however it ends.

        Raises:
            Exception: what the last push failed with. Those before it are tried again, less and less often.
        """
        pause = seconds

        def push() -> float:
            nonlocal pause
            try:
                self.push()
                pause = seconds
            except Exception as error:  # noqa: BLE001 - SDKs have errors of their own
                if pause == seconds:
                    say(f"  cannot write to {self.url} ({describe_error(error)}); work continues, and it is tried again")
                pause = max(seconds, min(2 * pause, LONGEST_PAUSE))
            return pause

        try:
            with repeating(push, seconds, "pushing"):
                yield
        finally:
            self.push()

    def _put(self, file: Path, target: str) -> None:
        """Puts a file whole: object stores do that by themselves, folders by a rename."""
        self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
        if isinstance(self.files, LocalFileSystem):
            with replacing(Path(target)) as temporary:
                shutil.copyfile(file, temporary)
        else:
            self.files.put_file(str(file), target)

    def _remote_states(self, part: str) -> dict[str, str]:
        """Path within the folder → remote state, of the files in a part of it."""
        self.files.invalidate_cache()
        files = list_files(self.files, f"{self.root}/{part}".rstrip("/"))
        names = {path[len(self.root) :].strip("/"): remote_state(info) for path, info in files.items()}
        return {name: state for name, state in names.items() if not is_private(name)}

    def _local_states(self) -> dict[str, str]:
        states = {}
        for file in self.folder.rglob("*"):
            name = file.relative_to(self.folder).as_posix()
            checkpoint = next((p for p in file.parents if p.name.startswith("checkpoint-")), None)
            if is_private(name) or (checkpoint and not (checkpoint / LAST_OF_CHECKPOINT).is_file()):
                continue
            with contextlib.suppress(FileNotFoundError):
                if file.is_file():
                    states[name] = local_state(file)
        return states

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / MANIFEST, self._known)


def list_files(files: AbstractFileSystem, folder: str) -> dict[str, dict[str, Any]]:
    """Path → fsspec's info of every file below a remote folder, which need not exist.

    Object stores list all at once by a `find` of their own. The one that other file systems inherit reports a folder that it
    could not list as empty, as `exists` reports it as missing; here such errors are raised.
    """
    if isinstance(files, AsyncFileSystem) or type(files).find is not AbstractFileSystem.find:
        try:
            return files.find(folder, detail=True)
        except FileNotFoundError:
            return {}
    found: dict[str, dict[str, Any]] = {}
    folders = [folder]
    while folders:
        with contextlib.suppress(FileNotFoundError):
            for info in files.ls(folders.pop(), detail=True):
                if info["type"] == "directory":
                    folders.append(info["name"])
                else:
                    found[info["name"]] = info
    return found


def is_private(name: str) -> bool:
    """Whether a file is for this machine alone: unfinished writes, locks and the manifest."""
    return name.endswith((".part", MANIFEST)) or name.rpartition("/")[2].startswith(".lock")


def results_last(name: str) -> tuple[bool, bool, str]:
    """Sorts files so that those that mark others as complete follow them."""
    return name.endswith("result.json"), name.endswith(LAST_OF_CHECKPOINT), name


def is_temporary(name: str) -> bool:
    """Whether a trial removes a file itself when it is no longer needed."""
    return "checkpoints/" in name or name.endswith("error.txt")


def is_small(name: str) -> bool:
    """Whether a command needs a file: checkpoints are for trials, students are pulled one by one."""
    return not any(part in ("checkpoints", "student") for part in name.split("/"))


def local_state(file: Path) -> str:
    """Changes with a local file."""
    stat = file.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def remote_state(info: dict[str, Any]) -> str:
    """Changes with a remote file: its size and, as far as the file system has them, a hash or the time it was written."""
    return " ".join([str(info.get("size")), *(str(info[k]) for k in STATE_KEYS if k in info)])


def copy_folder(url: str) -> Path:
    """Where this machine's commands keep their working copy of a remote folder."""
    return home() / "studies" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


@functools.cache
def copy_of(url: str, folder: Path) -> WorkingCopy:
    """This process's one working copy of a study."""
    return WorkingCopy(url, folder)
