"""Completions that came and are in no shard yet, for the run after one that was killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import uuid
from collections.abc import Iterable
from pathlib import Path

from cotd.teachers.store import SCHEMA, Completion, CompletionStore
from cotd.utils.jsonl import read_rows


class Journal:
    """A file of completions that are paid for and not kept yet.

    A shard is written for many completions, or after seconds: a process that is killed in between would lose them. A full disk is
    the store's to report.

    Args:
        folder: of such files; each run has one of its own, which it locks.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{uuid.uuid4().hex}.jsonl"
        self._file = self._path.open("w", encoding="utf-8")
        self._waiting: dict[str, Completion] = {}
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def add(self, completion: Completion) -> None:
        """Notes a completion down."""
        self._waiting[completion["key"]] = completion
        self._write([completion])

    def kept(self, completions: Iterable[Completion]) -> None:
        """These are in the store."""
        for completion in completions:
            self._waiting.pop(completion["key"], None)
        with contextlib.suppress(OSError):
            self._file.seek(0)
            self._file.truncate()
        self._write(self._waiting.values())

    def _write(self, completions: Iterable[Completion]) -> None:
        with contextlib.suppress(OSError):
            self._file.writelines(json.dumps(completion) + "\n" for completion in completions)
            self._file.flush()

    def close(self) -> None:
        """Removes the file, unless it has completions that were not kept."""
        if not self._waiting:
            self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._file.close()


def recover(folder: Path, store: CompletionStore) -> None:
    """Puts what runs that were killed have left into the store.

    Raises:
        CotdError: the store cannot be written.
    """
    for path in sorted(folder.glob("*.jsonl")):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # its run goes on
                continue
            store.append([row for row in read_rows(path) if row.keys() == set(SCHEMA.names)])
            path.unlink(missing_ok=True)
