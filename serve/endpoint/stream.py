"""Rationales in pieces while they are written, passed from the thread that writes to the request that reads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor

from cotd.students.student import Student


class Closed(Exception):
    """The stream was closed while a rationale was being written for it."""


class RationaleStream:
    """Pieces of rationales as they are written: (position in the texts, piece), one text after another.

    The texts count as queued from the start until `close`, which must be called however the iteration ends.

    Args:
        worker: runs the student, one text at a time.
        reserve: called with the change in the number of queued texts.
    """

    def __init__(self, student: Student, texts: Sequence[str], worker: Executor, reserve: Callable[[int], None]):
        self.student, self.texts, self.worker, self.reserve = student, texts, worker, reserve
        self.closed = threading.Event()
        reserve(len(texts))

    def close(self) -> None:
        """Frees the texts' places in the queue, and stops the student at its next piece; may be called again."""
        if not self.closed.is_set():
            self.closed.set()
            self.reserve(-len(self.texts))

    async def __aiter__(self) -> AsyncIterator[tuple[int, str]]:
        """Raises what the student raised, after the pieces that it wrote before."""
        loop = asyncio.get_running_loop()
        for position, text in enumerate(self.texts):
            pieces: asyncio.Queue[str | None] = asyncio.Queue()
            writing = loop.run_in_executor(self.worker, self._write, text, loop, pieces)
            while (piece := await pieces.get()) is not None:
                yield position, piece
            await writing

    def _write(self, text: str, loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[str | None]) -> None:
        """In the worker's thread: puts the pieces of a rationale, then None, into a queue of the event loop's."""

        def put(piece: str | None) -> None:
            if self.closed.is_set():
                raise Closed
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        with contextlib.suppress(Closed):
            try:
                if not self.closed.is_set():
                    self.student.stream_rationale(text, put)
            finally:
                put(None)
