"""A rationale as it is written, from the thread that writes to the request that reads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor

from cotd.students.student import Student


class RationaleStream:
    """Pieces of rationales as they are written: (position in the texts, piece), one text after another.

    Args:
        worker: the thread that writes.
        reserve: called with how many more (or fewer) texts take room in the queue: they do from the start until `close`.
    """

    def __init__(self, student: Student, texts: Sequence[str], worker: Executor, reserve: Callable[[int], None]):
        self.student, self.texts, self.worker, self.reserve = student, texts, worker, reserve
        self.closed = threading.Event()
        reserve(len(texts))

    def close(self) -> None:
        """Gives the room back, and has the student stop writing; may be called again."""
        if not self.closed.is_set():
            self.closed.set()
            self.reserve(-len(self.texts))

    async def __aiter__(self) -> AsyncIterator[tuple[int, str]]:
        loop = asyncio.get_running_loop()
        for position, text in enumerate(self.texts):
            pieces: asyncio.Queue[str | None] = asyncio.Queue()
            writing = loop.run_in_executor(self.worker, self._write, text, loop, pieces)
            while (piece := await pieces.get()) is not None:
                yield position, piece
            await writing

    def _write(self, text: str, loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[str | None]) -> None:
        """Writes a rationale in this thread, and puts its pieces, then None, into a queue of the event loop's."""

        def put(piece: str | None) -> None:
            if self.closed.is_set():
                raise Abandoned
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        with contextlib.suppress(Abandoned):  # nobody listens any more
            if not self.closed.is_set():
                try:
                    self.student.stream_rationale(text, put)
                finally:
                    put(None)


class Abandoned(Exception):
    """The client has gone while a rationale was written for it."""
