"""Leases: of many machines that share a folder on remote storage, one works on a trial, or runs a command, at a time.

Each holder of a lease makes the next numbered file in the folder of that lease, which only one can: of the storage no more is
asked than that it creates a file on the condition that there is none (S3 and others by If-None-Match). The holder writes its file
anew every few seconds. Whoever has seen it unchanged for two minutes makes the next one, and the earlier holder, should it live,
finds that and stops. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cotd.storage.urls import create, list_files, open_remote, state_of
from cotd.utils.background import repeating
from cotd.utils.files import read_json, write_json

BEAT_SECONDS = 15.0  # between the signs of life of a holder
PATIENCE_SECONDS = 120.0  # without one, before others take over: a store that is slow or fails may hold one back for long
LOOK_SECONDS = 1.0  # between looks whether a holder shows life


class LeaseLost(Exception):
    """Another machine has taken the lease over, or ended the work."""


class Lease:
    """The lease of one trial, or of one command.

    Args:
        url: the folder of the lease, which need not exist.
        machine: names what one lock on this machine guards: a lease of the same machine, whose lock is free, is a dead one's.
        sweep: names the sweep: its earlier attempt at a trial has ended when it makes another.
    """

    def __init__(self, url: str, machine: str, sweep: str = ""):
        self.files, root = open_remote(url)
        self.root = root.rstrip("/")
        where = f"{socket.gethostname()}, process {os.getpid()}"
        self.holder = {"holder": uuid.uuid4().hex, "machine": machine, "sweep": sweep, "where": where}
        self.number = -1
        self.beats = 0
        self.lost = False

    def acquire(self, stale: int | None = None) -> bool:
        """Takes the lease unless another machine has it; returns whether it was taken.

        Args:
            stale: the number of a lease that this sweep has seen unchanged for too long.
        """
        numbers = self._numbers()
        if numbers and (latest := max(numbers)) != stale:
            holder = read_holder(self.files, f"{self.root}/{latest}")
            same = [key for key in ("machine", "sweep") if self.holder[key] and holder.get(key) == self.holder[key]]
            if not holder.get("released") and not same:
                return False
        number = max(numbers, default=-1) + 1
        try:
            create(self.files, f"{self.root}/{number}", self._content())
        except FileExistsError:
            # A put whose response was lost is put again, and then finds its own file.
            if read_holder(self.files, f"{self.root}/{number}").get("holder") != self.holder["holder"]:
                return False
        self.number = number
        return True

    def take(self, patience_seconds: float = PATIENCE_SECONDS) -> dict[str, Any] | None:
        """Takes the lease, once its holder has been seen to show no life for so long; returns None, or else who lives and has it."""
        seen, stale, deadline = None, None, time.monotonic() + patience_seconds
        while not self.acquire(stale):
            number = max(self._numbers(), default=-1)
            latest = (number, read_holder(self.files, f"{self.root}/{number}"))
            if seen not in (None, latest) and latest[1]:
                return latest[1]
            seen = latest
            if time.monotonic() >= deadline:
                stale = number
            else:
                time.sleep(LOOK_SECONDS)
        return None

    @contextlib.contextmanager
    def renewing(self, name: str, on_loss: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Shows for the duration of a block that the holder lives; `on_loss` is called when another has taken the lease over."""

        def beat() -> float:
            with contextlib.suppress(Exception):  # a store that fails is tried again; SDKs have errors of their own
                try:
                    self.renew()
                except LeaseLost:
                    on_loss()
            return BEAT_SECONDS

        with repeating(beat, BEAT_SECONDS, f"lease of {name}"):
            yield

    def renew(self) -> None:
        """Shows that the holder lives.

        Raises:
            LeaseLost: as `require`.
        """
        self.require()
        self.beats += 1
        self.files.pipe_file(f"{self.root}/{self.number}", self._content())

    def require(self) -> None:
        """Raises LeaseLost, from then on, if another machine has taken the lease over, or has ended the work."""
        if not self.lost:
            numbers = self._numbers()
            self.lost = self.number not in numbers or max(numbers) > self.number
        if self.lost:
            raise LeaseLost("another machine has taken this over")

    def release(self, done: bool) -> None:
        """Lets others have the lease; or, where the work is done for good, leaves no trace of it."""
        if done:
            for number in sorted(self._numbers(), reverse=True):
                self.files.rm_file(f"{self.root}/{number}")
        else:
            self.require()
            self.files.pipe_file(f"{self.root}/{self.number}", self._content(released=True))

    def _content(self, **more: Any) -> bytes:
        return json.dumps({**self.holder, "beats": self.beats, **more}).encode()

    def _numbers(self) -> list[int]:
        return [int(path.rpartition("/")[2]) for path in list_files(self.files, self.root)]


class LeaseWatch:
    """What a sweep sees of the leases of others: which trials are worked on.

    Args:
        url: the folder of all leases.
        is_dead: (name, content of its lease) → whether its holder is known to be dead.
    """

    def __init__(
        self,
        url: str,
        is_dead: Callable[[str, dict[str, Any]], bool],
        patience_seconds: float,
    ):
        self.files, root = open_remote(url)
        self.root = root.rstrip("/")
        self.is_dead = is_dead
        self.patience = patience_seconds
        # path → its state, when it was first seen in it, and its content
        self._seen: dict[str, tuple[str, float, dict[str, Any]]] = {}

    def look(self) -> tuple[set[str], dict[str, int]]:
        """(names of the work under lease, name → number of a lease that is given back, or whose holder is dead or seems so)."""
        now = time.monotonic()
        latest: dict[str, tuple[int, str, str]] = {}  # name → number, path and state
        for path, info in list_files(self.files, self.root).items():
            name, digits = path.rsplit("/", 2)[1:]
            latest[name] = max(latest.get(name, (-1, "", "")), (int(digits), path, state_of(info)))
        held, free = set(), {}
        for name, (number, path, state) in latest.items():
            if path not in self._seen or self._seen[path][0] != state:
                self._seen[path] = (state, now, read_holder(self.files, path))
            _, since, holder = self._seen[path]
            if holder.get("released") or now - since >= self.patience or self.is_dead(name, holder):
                free[name] = number
            else:
                held.add(name)
        return held, free


def read_holder(files: Any, path: str) -> dict[str, Any]:
    """The content of a lease; empty if it is gone or being written."""
    try:
        return json.loads(files.cat_file(path))
    except (FileNotFoundError, ValueError):
        return {}


def machine_name(folder: Path) -> str:
    """A name for the machine, or the part of it, that shares a folder of locks."""
    from filelock import FileLock

    file = folder / "machine.json"
    with FileLock(folder / ".lock-machine"):
        if not file.is_file():
            write_json(file, uuid.uuid4().hex)
        return read_json(file)
