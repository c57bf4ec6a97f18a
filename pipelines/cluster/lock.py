"""One command at a time in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cotd.errors import CotdError


@contextlib.contextmanager
def only_one(folder: Path, doing: str, advice: str) -> Iterator[None]:
    """Keeps a second process from working in a folder; ends with the process, however that ends.

    Args:
        doing: what the process does, as in "is … of NAME". advice: what is lost, or not, if it is stopped.

    Raises:
        CotdError: another one is at it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CotdError(f"another process is {doing} (it holds {lock.lock_file}). Wait for it, or stop it; {advice}") from error
    try:
        yield
    finally:
        lock.release()
