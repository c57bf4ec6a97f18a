"""Dynamic batching: texts of many requests are computed together by one worker thread, without waiting for a full batch."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any


def equal_shares(wanted: Sequence[int], room: int) -> list[int]:
    """How much each of at most `room` who want at least one gets: as much as any other, unless it wants less."""
    shares = [0] * len(wanted)
    while room and (hungry := [i for i, share in enumerate(shares) if share < wanted[i]]):
        for i in hungry[:room]:
            given = min(max(1, room // len(hungry)), wanted[i] - shares[i])
            shares[i] += given
            room -= given
    return shares


class QueueFull(Exception):
    """The texts do not fit into the queue.

    Attributes:
        retry_after: seconds after which the queue has probably emptied.
    """

    def __init__(self, retry_after: int):
        super().__init__(retry_after)
        self.retry_after = retry_after


class Closed(Exception):
    """The endpoint is shutting down, and computes no more."""


@dataclass(eq=False)
class Job:
    """One request's texts; they may be computed in several batches. A text may be anything that `compute` takes.

    Attributes:
        model: the model that was served when the request came in; it computes them.
        started: how many of the texts are in a batch already.
    """

    model: Any
    texts: Sequence[Any]
    done: asyncio.Future[list[Any]]
    results: list[Any] = field(default_factory=list)
    started: int = 0


class Batcher:
    """Gathers texts into batches, which one thread computes.

    An idle worker starts at once, so that a single request never waits; while it computes, the next batch gathers, in which
    every waiting request has an equal share: a large one holds up none. Lives on one event loop. (`serve.batch` of Ray neither
    splits requests nor separates models.)

    Args:
        compute: (model, texts) → one result a text; called in the worker thread.
        max_batch: texts a batch.
        max_queued: texts that may wait; the batch being computed does not count.
        reserved: how many of them only requests of at most a batch may have.
        on_batch: called with (texts, seconds) after each batch.
        on_queue: called with the number of waiting texts when it changes.

    Attributes:
        succeeded, failed: batches that were computed, and batches whose computation raised, since someone last set them to 0.
    """

    def __init__(
        self,
        compute: Callable[[Any, list[Any]], Sequence[Any]],
        max_batch: int,
        max_queued: int,
        on_batch: Callable[[int, float], None] = lambda texts, seconds: None,
        on_queue: Callable[[int], None] = lambda queued: None,
        reserved: int = 0,
    ):
        self.compute = compute
        self.max_batch = max_batch
        self.max_queued = max_queued
        self.reserved = reserved
        self.on_batch = on_batch
        self.on_queue = on_queue
        self.queued = self.succeeded = self.failed = 0
        self.busy = self.closed = False
        self.computing: list[tuple[Job, Sequence[Any]]] = []
        self.jobs: deque[Job] = deque()
        self.seconds_a_text = 0.0  # a moving average
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batcher")

    async def submit(self, model: Any, texts: Sequence[Any]) -> list[Any]:
        """One result a text, in their order, all from `model`.

        Raises:
            QueueFull: the texts do not fit into the queue; none of them is computed.
            Closed: the batcher is closed, or was before all of them were computed.
        """
        if self.closed:
            raise Closed
        if not self.has_room(len(texts)):
            raise QueueFull(self.seconds_to_empty())
        job = Job(model, texts, asyncio.get_running_loop().create_future())
        self.jobs.append(job)
        self.queued += len(texts)
        self._start()
        return await job.done

    def has_room(self, texts: int) -> bool:
        """Whether a request of so many texts fits into the queue."""
        return self.queued + texts <= self.max_queued - (self.reserved if texts > self.max_batch else 0)

    def close(self) -> None:
        """Stops computing after the present batch. Every waiting request fails at once."""
        self.closed = True
        self.worker.shutdown(wait=False, cancel_futures=True)
        for job in [*self.jobs, *(job for job, _ in self.computing)]:
            if not job.done.done():
                job.done.set_exception(Closed())
        self.jobs.clear()
        self.queued = 0

    def seconds_to_empty(self) -> int:
        """Estimated seconds until everything queued is computed, at least 1."""
        return max(1, math.ceil(self.queued * self.seconds_a_text))

    def _gather(self) -> list[tuple[Job, Sequence[Any]]]:
        """The next batch: equal shares of the jobs of one model, that of the oldest job."""
        for job in self.jobs:
            if job.done.done():  # its client has disconnected, or an earlier batch of it failed
                self.queued -= len(job.texts) - job.started
        self.jobs = deque(job for job in self.jobs if not job.done.done())
        chosen = list(itertools.islice((job for job in self.jobs if job.model is self.jobs[0].model), self.max_batch))
        shares = equal_shares([len(job.texts) - job.started for job in chosen], self.max_batch)
        parts = []
        for job, share in zip(chosen, shares, strict=True):
            parts.append((job, job.texts[job.started : job.started + share]))
            job.started += share
            self.queued -= share
        # Those that are left have had their turn: the others come first.
        unfinished = [job for job in chosen if job.started < len(job.texts)]
        self.jobs = deque([*(job for job in self.jobs if job not in chosen), *unfinished])
        return parts

    def _start(self) -> None:
        parts = [] if self.busy or self.closed else self._gather()
        self.on_queue(self.queued)
        if not parts:
            return
        self.busy, self.computing = True, parts
        texts = [text for _, part in parts for text in part]
        running = asyncio.get_running_loop().run_in_executor(self.worker, self.compute, parts[0][0].model, texts)
        running.add_done_callback(partial(self._deliver, parts, time.perf_counter()))

    def _deliver(self, parts: list[tuple[Job, Sequence[Any]]], started: float, done: asyncio.Future[Sequence[Any]]) -> None:
        """Gives a batch's results, or its error, to the waiting requests, once the worker has started the next batch."""
        self.busy, self.computing = False, []
        if done.cancelled():  # closed before the worker had begun
            return
        self._start()
        error = done.exception()
        if error is None:
            self.succeeded += 1
        else:
            self.failed += 1
            for job, _ in parts:
                if not job.done.done():
                    job.done.set_exception(error)
            return
        texts, seconds = sum(len(part) for _, part in parts), time.perf_counter() - started
        self.seconds_a_text = 0.8 * (self.seconds_a_text or seconds / texts) + 0.2 * seconds / texts
        self.on_batch(texts, seconds)
        results, taken = done.result(), 0
        for job, part in parts:
            job.results += results[taken : taken + len(part)]
            taken += len(part)
            if len(job.results) == len(job.texts) and not job.done.done():
                job.done.set_result(job.results)
