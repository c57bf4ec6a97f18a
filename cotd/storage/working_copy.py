"""Working copies of remote storage: local folders that stand for a folder at an fsspec URL.

Hand-written: `fsspec.generic.rsync` knows a change by a file's size alone, or by times of two machines, keeps no order, replaces
files in place, and removes whatever is not there on the other side, or nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from cotd.progress import say
from cotd.storage.urls import create, list_files, open_remote, state_of
from cotd.utils.background import repeating
from cotd.utils.files import replacing, write_text
from cotd.utils.home import home
from cotd.utils.jsonl import append_row, read_rows
from cotd.utils.text import describe_error

MANIFEST = ".copy.jsonl"
PUSH_SECONDS = 5.0  # between looks at what a trial has written
LONGEST_PAUSE = 60.0  # between pushes while the remote storage fails
LAST_OF_CHECKPOINT = "trainer_state.json"  # what the Trainer writes last
AT_ONCE = 16  # files on the way to or from an object store, where each takes a few hundredths of a second of waiting


class WorkingCopy:
    """A local folder that stands for a remote one. One process at a time uses a copy; many machines may have one each.

    A manifest in the folder says what was copied in which state, so that only changes are copied. Of the files that are removed
    here, only checkpoints and errors are removed remotely: a copy that is lost loses no results. Threads may share an object.

    Args:
        url: an fsspec URL of the remote folder, which need not exist.
        folder: the local folder, which need not exist either.
        before_push: called before anything is written remotely; what it raises keeps all files from it.
    """

    def __init__(self, url: str, folder: Path, before_push: Callable[[], None] = lambda: None):
        self.files, root = open_remote(url)
        self.root = root.rstrip("/")
        self.url = url
        self.folder = folder
        self.before_push = before_push
        self._lock = threading.Lock()
        # path in the folder → local and remote state when it was last copied
        self._known: dict[str, list[str]] = {}
        rows = read_rows(folder / MANIFEST)
        for row in rows:
            self._known.pop(row["name"], None)
            if row["states"]:
                self._known[row["name"]] = row["states"]
        if len(rows) > 2 * len(self._known) + 100:
            lines = [json.dumps({"name": name, "states": states}) + "\n" for name, states in self._known.items()]
            write_text(folder / MANIFEST, "".join(lines))

    def pull(self, part: str = "", select: Callable[[str], bool] = lambda name: True) -> None:
        """Copies remote files that are new or changed; removes local ones that are gone remotely and unchanged here.

        Args:
            part: only this folder within.
            select: whether to copy a file, by its path within the folder.

        Raises:
            OSError: the remote storage failed; no local file has been removed.
        """
        remote = self._remote_states(part)

        def get(name: str) -> None:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError), replacing(target) as temporary:  # a checkpoint may be replaced
                self.files.get_file(f"{self.root}/{name}", str(temporary))
                self._note(name, [local_state(temporary), remote[name]])

        def is_new(name: str) -> bool:
            return self._known.get(name, ("", ""))[1] != remote[name] or not (self.folder / name).is_file()

        self._each(get, [name for name in remote if select(name) and is_new(name)])
        for name in [n for n in self._known_in(part) if n not in remote]:
            with contextlib.suppress(FileNotFoundError):
                if local_state(self.folder / name) == self._known[name][0]:
                    (self.folder / name).unlink()
            self._note(name, None)

    def push(self, part: str = "") -> None:
        """Copies local files that are new or changed, results last, and of checkpoints only whole ones.

        Args:
            part: only this folder within.
        """
        local = self._local_states(part)

        def put(name: str) -> None:
            target = f"{self.root}/{name}"
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                self._put(self.folder / name, target)
                self._note(name, [local[name], state_of(self.files.info(target))])

        changed = [name for name in local if self._known.get(name, ("", ""))[0] != local[name]]
        gone = [n for n in self._known_in(part) if is_temporary(n) and not (self.folder / n).is_file()]
        if changed or gone:
            self.before_push()
        self._each(put, changed)
        for name in gone:
            with contextlib.suppress(FileNotFoundError):
                self.files.rm_file(f"{self.root}/{name}")
            self._note(name, None)

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
        """Puts a file whole: object stores do that by themselves, folders by a rename. The first result of a trial stays."""
        if file.name == "result.json":
            with contextlib.suppress(FileExistsError):
                create(self.files, target, file.read_bytes())
            return
        self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
        if isinstance(self.files, LocalFileSystem):
            with replacing(Path(target)) as temporary:
                shutil.copyfile(file, temporary)
        else:
            self.files.put_file(str(file), target)

    def _remote_states(self, part: str) -> dict[str, str]:
        """Path within the folder → remote state, of the files in a part of it."""
        files = list_files(self.files, f"{self.root}/{part}".rstrip("/"))
        names = {path[len(self.root) :].strip("/"): state_of(info) for path, info in files.items()}
        return {name: state for name, state in names.items() if not is_private(name)}

    def _known_in(self, part: str) -> list[str]:
        return [name for name in list(self._known) if not part or name.startswith(f"{part}/")]

    def _local_states(self, part: str) -> dict[str, str]:
        states = {}
        for file in (self.folder / part).rglob("*"):
            name = file.relative_to(self.folder).as_posix()
            checkpoint = next((p for p in file.parents if p.name.startswith("checkpoint-")), None)
            if is_private(name) or (checkpoint and not (checkpoint / LAST_OF_CHECKPOINT).is_file()):
                continue
            with contextlib.suppress(FileNotFoundError):
                if file.is_file():
                    states[name] = local_state(file)
        return states

    def _each(self, copy: Callable[[str], None], names: list[str]) -> None:
        """Copies files, several at once, those that mark others as complete after all others."""
        at_once = AT_ONCE if isinstance(self.files, AsyncFileSystem) else 1  # others may not be safe to share
        with ThreadPoolExecutor(at_once) as pool:
            for _, group in groupby(sorted(names, key=results_last), key=lambda name: results_last(name)[:2]):
                for _ in pool.map(copy, group):
                    pass

    def _note(self, name: str, states: list[str] | None) -> None:
        """Notes the local and remote states of a file that was copied, or that it is gone, in the manifest too."""
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            append_row(self.folder / MANIFEST, {"name": name, "states": states})
            self._known.pop(name, None)
            if states:
                self._known[name] = states


def is_private(name: str) -> bool:
    """Whether a file is no part of a copy: unfinished writes, locks, the manifest, and leases, which are read and written as such."""
    return name.endswith((".part", MANIFEST)) or name.startswith("leases/") or name.rpartition("/")[2].startswith(".lock")


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


def copy_folder(url: str) -> Path:
    """Where this machine's commands keep their working copy of a remote folder."""
    return home() / "studies" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


@functools.cache
def copy_of(url: str, folder: Path) -> WorkingCopy:
    """This process's one working copy of a study."""
    return WorkingCopy(url, folder)
