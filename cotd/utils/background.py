"""Work that is repeated in a thread of its own beside a block of code."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def repeating(work: Callable[[], float], pause: float, name: str) -> Iterator[None]:
    """Calls `work` now and then for the duration of a block; when the block has ended, no call is under way.

    Args:
        work: returns how many seconds to wait before its next call; it must not raise.
        pause: seconds before the first call.
        name: of the thread.
    """
    stop = threading.Event()

    def run() -> None:
        seconds = pause
        while not stop.wait(seconds):
            seconds = work()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
