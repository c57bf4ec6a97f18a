"""Rationales in pieces while they are written, passed from the thread that writes to the request that reads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from functools import partial

from cotd.students.student import Student
from cotd.tasks.samples import Sample
from serve.endpoint.batcher import Closed


class Unread(Exception):
    """The stream was closed while a rationale was being written for it."""


def end(pieces: asyncio.Queue[str | None], written: asyncio.Future[None]) -> None:
    """Marks the end of the pieces."""
    pieces.put_nowait(None)


class RationaleStream:
    """Pieces of rationales as they are written: (position in the texts, piece), one text after another.

    The texts count as queued from the start until `close`, which must be called however the iteration ends.

    Attributes:
        writers: who writes the rationale of each text; to be set before the iteration.

    Args:
        worker: runs the student, one text at a time.
        reserve: called with the change in the number of queued texts.
    """

    def __init__(self, texts: Sequence[Sample], worker: Executor, reserve: Callable[[int], None]):
        self.texts, self.worker, self.reserve = texts, worker, reserve
        self.writers: Sequence[Student] = ()
        self.closed = threading.Event()
        reserve(len(texts))

    def close(self) -> None:
        """Frees the texts' places in the queue, and stops the student at its next piece; may be called again."""
        if not self.closed.is_set():
            self.closed.set()
            self.reserve(-len(self.texts))

    async def __aiter__(self) -> AsyncIterator[tuple[int, str]]:
        """Raises what the student raised, after the pieces that it wrote before; Closed if the endpoint is shutting down."""
        loop = asyncio.get_running_loop()
        for position, (text, writer) in enumerate(zip(self.texts, self.writers, strict=True)):
            pieces: asyncio.Queue[str | None] = asyncio.Queue()
            try:
                writing = loop.run_in_executor(self.worker, self._write, writer, text, loop, pieces)
            except RuntimeError as error:  # the worker was shut down
                raise Closed from error
            # After the last piece; and if the worker is shut down before it begins.
            writing.add_done_callback(partial(end, pieces))
            while (piece := await pieces.get()) is not None:
                yield position, piece
            if writing.cancelled():
                raise Closed
            await writing

    def _write(self, writer: Student, text: Sample, loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[str | None]) -> None:
        """In the worker's thread: puts the pieces of a rationale into a queue of the event loop's."""

        def put(piece: str) -> None:
            if self.closed.is_set():
                raise Unread
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        with contextlib.suppress(Unread):
            if not self.closed.is_set():
                writer.stream_rationale(text.text, put, choices=text.choices)
