"""A stream of rationales: pieces in order, errors after them, and an end to the writing when nobody reads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cotd.tasks.samples import Sample
from serve.endpoint.batcher import Closed
from serve.endpoint.stream import RationaleStream


class Writer:
    """Stands for a student: writes the words of a text as pieces, each with a permit; "fail" is an error."""

    def __init__(self, permits: int) -> None:
        self.pieces = 0
        self.permits = threading.Semaphore(permits)

    def stream_rationale(self, text: str, on_text: Callable[[str], None], choices: Any = None) -> None:
        for word in text.split():
            self.permits.acquire(timeout=10)
            if word == "fail":
                raise RuntimeError("out of memory")
            on_text(word)
            self.pieces += 1


def run(texts: list[str], use: Callable[[Writer, RationaleStream], Any], permits: int = 100) -> tuple[Writer, list[int]]:
    """Uses a stream in an event loop; returns the writer, and the changes in the number of queued texts."""
    reserved: list[int] = []
    writer = Writer(permits)
    with ThreadPoolExecutor(max_workers=1) as worker:
        samples = [Sample(text) for text in texts]
        stream = RationaleStream(samples, worker, reserved.append)
        stream.writers = [writer] * len(samples)  # type: ignore[list-item]
        asyncio.run(use(writer, stream))
    return writer, reserved


def test_pieces_come_in_order_and_places_are_freed_once() -> None:
    async def use(_: Writer, stream: RationaleStream) -> None:
        assert [piece async for piece in stream] == [(0, "warm"), (0, "and"), (0, "funny"), (2, "dull")]
        stream.close()
        stream.close()

    assert run(["warm and funny", "", "dull"], use)[1] == [3, -3]


def test_an_error_comes_after_the_pieces_before_it() -> None:
    async def use(_: Writer, stream: RationaleStream) -> None:
        pieces = aiter(stream)
        assert await anext(pieces) == (0, "warm")
        with pytest.raises(RuntimeError, match="out of memory"):
            await anext(pieces)
        stream.close()

    run(["warm fail", "never written"], use)


def test_closing_stops_the_student() -> None:
    async def use(writer: Writer, stream: RationaleStream) -> None:
        assert await anext(aiter(stream)) == (0, "one")
        stream.close()
        writer.permits.release(100)

    writer, reserved = run(["one two three", "never written"], use, permits=1)
    assert writer.pieces == 1
    assert reserved == [2, -2]


def test_a_stream_that_is_closed_before_it_is_read_writes_nothing() -> None:
    async def use(_: Writer, stream: RationaleStream) -> None:
        stream.close()

    assert run(["warm"], use)[0].pieces == 0


def test_a_stream_ends_when_its_worker_is_shut_down() -> None:
    """An endpoint that closes drops what waits for its worker."""

    async def use(writer: Writer, stream: RationaleStream) -> None:
        pieces = aiter(stream)
        assert await anext(pieces) == (0, "one")
        waiting = RationaleStream([Sample("never written")], stream.worker, lambda _: None)
        waiting.writers = stream.writers[:1]
        next_piece = asyncio.ensure_future(anext(aiter(waiting)))
        await asyncio.sleep(0)
        stream.worker.shutdown(wait=False, cancel_futures=True)  # type: ignore[attr-defined]
        writer.permits.release(100)
        with pytest.raises(Closed):
            await asyncio.wait_for(next_piece, 10)
        with pytest.raises(Closed):
            await anext(aiter(waiting))
        stream.close()

    run(["one two"], use, permits=1)
