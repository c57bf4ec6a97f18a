"""Batches: which texts share one, which wait, which are refused, and who gets which result."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from serve.endpoint.batcher import Batcher, Closed, QueueFull, equal_shares

pytestmark = pytest.mark.anyio


class Computer:
    """Doubles texts, records its batches, and holds each until `may_go`."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, list[str]]] = []
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, model: Any, texts: list[str]) -> list[str]:
        self.may_go.wait(10)
        self.batches.append((model, texts))
        if "poison" in texts:
            raise RuntimeError("the model cannot read this")
        return [t * 2 for t in texts]


@pytest.fixture
def computer() -> Computer:
    return Computer()


async def held(computer: Computer, batcher: Batcher) -> asyncio.Task[list[str]]:
    """A request whose batch is being computed until `computer.may_go` is set."""
    computer.may_go.clear()
    first = asyncio.create_task(batcher.submit("m", ["first"]))
    await asyncio.sleep(0)
    assert batcher.busy
    return first


async def test_waiting_texts_are_computed_together(computer: Computer) -> None:
    batcher = Batcher(computer, max_batch=4, max_queued=10)
    first = await held(computer, batcher)
    others = [asyncio.create_task(batcher.submit("m", texts)) for texts in (["a", "b"], ["c"], ["d"])]
    await asyncio.sleep(0)
    assert batcher.queued == 4
    computer.may_go.set()
    assert await first == ["firstfirst"]
    assert await asyncio.gather(*others) == [["aa", "bb"], ["cc"], ["dd"]]
    assert [texts for _, texts in computer.batches] == [["first"], ["a", "b", "c", "d"]]
    assert batcher.queued == 0


async def test_a_large_request_does_not_hold_up_a_small_one(computer: Computer) -> None:
    batcher = Batcher(computer, max_batch=2, max_queued=10)
    first = await held(computer, batcher)
    large = asyncio.create_task(batcher.submit("m", ["a", "b", "c", "d", "e"]))
    small = asyncio.create_task(batcher.submit("m", ["z"]))
    await asyncio.sleep(0)
    computer.may_go.set()
    await first
    assert await small == ["zz"]
    assert await large == ["aa", "bb", "cc", "dd", "ee"]
    assert [texts for _, texts in computer.batches] == [["first"], ["a", "z"], ["b", "c"], ["d", "e"]]


async def test_many_large_requests_do_not_starve_lone_ones(computer: Computer) -> None:
    batcher = Batcher(computer, max_batch=4, max_queued=20, reserved=4)
    first = await held(computer, batcher)
    large = [asyncio.create_task(batcher.submit("m", [f"{name}{i}" for i in range(8)])) for name in "ab"]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await batcher.submit("m", [str(i) for i in range(5)])
    lone = [asyncio.create_task(batcher.submit("m", [name])) for name in "wxyz"]
    await asyncio.sleep(0)
    assert batcher.queued == 20
    computer.may_go.set()
    await first
    assert await asyncio.gather(*lone) == [["ww"], ["xx"], ["yy"], ["zz"]]
    first_batches = [text for _, batch in computer.batches[1:3] for text in batch]
    assert {"w", "x", "y", "z"} < set(first_batches), "the lone texts are not behind sixteen others"
    assert [len(results) for results in await asyncio.gather(*large)] == [8, 8]
    assert computer.batches[1][1] == ["a0", "b0", "w", "x"]


@pytest.mark.parametrize(
    ("wanted", "room", "shares"),
    [([256], 32, [32]), ([256, 1], 32, [31, 1]), ([1] * 40, 32, [1] * 32 + [0] * 8), ([2, 3], 9, [2, 3])],
)
def test_shares_of_a_batch(wanted: list[int], room: int, shares: list[int]) -> None:
    assert equal_shares(wanted, room) == shares


async def test_models_do_not_share_a_batch(computer: Computer) -> None:
    batcher = Batcher(computer, max_batch=8, max_queued=10)
    first = await held(computer, batcher)
    models = ["old", "new", "old", "new"]
    others = [asyncio.create_task(batcher.submit(m, [f"{m}{i}"])) for i, m in enumerate(models)]
    await asyncio.sleep(0)
    computer.may_go.set()
    await asyncio.gather(first, *others)
    assert computer.batches[1:] == [("old", ["old0", "old2"]), ("new", ["new1", "new3"])]


async def test_a_full_queue_refuses_and_recovers(computer: Computer) -> None:
    batcher = Batcher(computer, max_batch=2, max_queued=3)
    first = await held(computer, batcher)
    waiting = asyncio.create_task(batcher.submit("m", ["a", "b"]))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as caught:
        await batcher.submit("m", ["c", "d"])
    assert caught.value.retry_after >= 1
    computer.may_go.set()
    await asyncio.gather(first, waiting)
    assert await batcher.submit("m", ["c", "d"]) == ["cc", "dd"]


async def test_an_error_reaches_its_batch_and_no_other(computer: Computer) -> None:
    batcher = Batcher(computer, max_batch=2, max_queued=10)
    with pytest.raises(RuntimeError, match="cannot read this"):
        await batcher.submit("m", ["poison", "b", "c", "d"])
    assert await batcher.submit("m", ["fine"]) == ["finefine"]
    assert batcher.queued == 0


async def test_a_client_that_goes_away_leaves_the_queue(computer: Computer) -> None:
    batcher = Batcher(computer, max_batch=2, max_queued=3)
    first = await held(computer, batcher)
    gone = asyncio.create_task(batcher.submit("m", ["a", "b", "c"]))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    computer.may_go.set()
    await first
    assert await batcher.submit("m", ["d"]) == ["dd"]
    assert batcher.queued == 0
    assert [texts for _, texts in computer.batches] == [["first"], ["d"]]


async def test_closing_fails_what_waits_and_refuses_what_comes(computer: Computer) -> None:
    batcher = Batcher(computer, max_batch=2, max_queued=10)
    first = await held(computer, batcher)
    waiting = asyncio.create_task(batcher.submit("m", ["a", "b", "c"]))
    await asyncio.sleep(0)
    batcher.close()
    computer.may_go.set()
    results = await asyncio.wait_for(asyncio.gather(first, waiting, return_exceptions=True), 10)
    assert [type(result) for result in results] == [Closed, Closed]
    with pytest.raises(Closed):
        await batcher.submit("m", ["d"])
