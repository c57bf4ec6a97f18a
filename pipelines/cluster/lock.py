"""A lock on a folder: one command at a time works in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cotd.errors import CotdError


@contextlib.contextmanager
def only_one(folder: Path, activity: str, advice: str) -> Iterator[None]:
    """Keeps a second process on this machine from working in a folder; ends with the process, however that ends.

    Args:
        activity: completes "another process is …". advice: what is lost, or not, if that process is stopped.

    Raises:
        CotdError: another process works in the folder.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CotdError(f"another process is {activity} ({lock.lock_file}). Wait for it, or stop it; {advice}") from error
    try:
        yield
    finally:
        lock.release()
