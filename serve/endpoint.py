"""The endpoint: the student that is served, its queues, and the change to a new champion. Knows neither HTTP nor Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cotd import assets
from cotd.errors import CotdError
from cotd.student import Prediction, Student
from serve.batcher import Batcher, QueueFull
from serve.metrics import Metrics
from serve.runtime import Runtime, make_runtime
from serve.schemas import ModelName
from serve.settings import Settings

LOG = logging.getLogger("ray.serve.cotd")  # Serve writes what its children log to the replica's file


@dataclass(frozen=True, eq=False)
class Served:
    """A student, ready to answer. Requests hold on to the one they began with."""

    name: ModelName
    student: Student
    runtime: Runtime
    loaded_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def load(cls, source: str, name: ModelName, runtime: str) -> Served:
        """Loads and checks a student.

        Raises:
            CotdError: it cannot be loaded, or does not pass its check.
        """
        student = Student.load(source)
        return cls(name, student, make_runtime(runtime, student))

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        return self.student.predictions(*self.runtime.label_logits(texts))

    def explain(self, texts: Sequence[str]) -> list[str]:
        return self.student.explain(texts)

    @property
    def licences(self) -> dict[str, str]:
        """Of the embedded reviews, teacher and base model that the student comes from: source → licence."""
        card = self.student.card
        sources = [card.get("base"), (card.get("data") or {}).get("source"), (card.get("teacher") or {}).get("model")]
        return {s: assets.get_asset(s).licence for s in sources if isinstance(s, str) and assets.is_embedded(s)}


class Endpoint:
    """Answers with the current student. Everything but the computing happens on one event loop.

    Attributes:
        served: what new requests are answered with.
        refused: the version that was last found wanting; not tried again until the alias moves on.
    """

    def __init__(self, settings: Settings):
        """Loads the student that the settings name.

        Raises:
            CotdError: it cannot be loaded, or does not pass its check.
        """
        import torch

        from cotd.tracking import use_tracking

        torch.set_num_threads(settings.threads)
        use_tracking(settings.tracking_uri)
        self.settings = settings
        self.metrics = Metrics(settings.metrics_folder)
        name, pinned = pin(settings.student)
        self.served = Served.load(pinned, name, settings.runtime)
        self._count_replica(self.served, 1)
        self.refused: str | None = None
        self.streaming = 0
        self.labels = self._batcher("label", Served.predict, settings.max_queued_texts)
        self.rationales = self._batcher("rationale", Served.explain, settings.max_queued_rationales)
        self.loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")

    def _batcher(self, work: str, compute: Callable[[Served, list[str]], Sequence[Any]], max_queued: int) -> Batcher:
        def on_batch(texts: int, seconds: float) -> None:
            self.metrics.batch_texts.labels(work).observe(texts)
            self.metrics.batch_seconds.labels(work).observe(seconds)

        return Batcher(compute, self.settings.max_batch, max_queued, on_batch, self.metrics.queued.labels(work).set)

    def close(self) -> None:
        for worker in (self.labels.worker, self.rationales.worker, self.loader):
            worker.shutdown(wait=False, cancel_futures=True)
        self._count_replica(self.served, 0)

    # --- answering ----------------------------------------------------------------------------------------------

    async def predict(self, served: Served, texts: Sequence[str]) -> list[Prediction]:
        """The label of each text.

        Raises:
            QueueFull: too many texts wait already.
        """
        predictions = await self.labels.submit(served, texts)
        for prediction in predictions:
            self.metrics.predictions.labels(prediction.label, served.name.version).inc()
        self.metrics.truncated.inc(sum(p.truncated for p in predictions))
        return predictions

    async def explain(self, served: Served, texts: Sequence[str]) -> list[str]:
        """The student's own rationale for each text.

        Raises:
            QueueFull: too many texts wait already.
        """
        return await self.rationales.submit(served, texts)

    def explain_aloud(self, served: Served, texts: Sequence[str]) -> AsyncIterator[tuple[int, str]]:
        """Pieces of the rationales as they are written: (position in `texts`, piece), one text after another.

        Raises:
            QueueFull: too many rationales are being written already; raised by the call, not by the iterator.
        """
        if self.streaming + self.rationales.queued + len(texts) > self.settings.max_queued_rationales:
            raise QueueFull(self.rationales.seconds_to_empty())
        return self._pieces(served, texts)

    async def _pieces(self, served: Served, texts: Sequence[str]) -> AsyncIterator[tuple[int, str]]:
        self.streaming += len(texts)
        loop = asyncio.get_running_loop()
        try:
            for position, text in enumerate(texts):
                pieces: asyncio.Queue[str | None] = asyncio.Queue()
                writing = loop.run_in_executor(self.rationales.worker, write_aloud, served.student, text, loop, pieces)
                while (piece := await pieces.get()) is not None:
                    yield position, piece
                await writing
        finally:
            self.streaming -= len(texts)

    # --- the champion -------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Looks at the alias again and again, and changes to the student it names."""
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            await self.refresh()

    async def refresh(self) -> None:
        """Looks at the alias once. Another version is loaded aside and checked; then one reference is exchanged.

        Requests that came in before end on the student they began with. A version that cannot be loaded, fails its
        check or has other labels is refused: a line in the log, a count in the metrics, and the old one stays.
        """
        pinned, error = await self._aside(pin, self.settings.student)
        if error is not None:
            LOG.warning(
                "cannot look up %s, still serving version %s: %s", self.settings.student, self._version, first_line(error)
            )
            self.metrics.swaps.labels("registry_unreachable").inc()
            return
        name, source = pinned
        if name == self.served.name:
            self.refused = None
        if name == self.served.name or name.version == self.refused:
            return
        new, error = await self._aside(Served.load, source, name, self.settings.runtime)
        if error is None and new.student.task.labels != self.served.student.task.labels:
            error = CotdError(f"its labels are {', '.join(new.student.task.labels)}; start another endpoint for another task")
        if error is not None:
            LOG.error("version %s is refused, still serving version %s: %s", name.version, self._version, first_line(error))
            self.metrics.swaps.labels("refused").inc()
            self.refused = name.version
            return
        old, self.served, self.refused = self.served, new, None
        self._count_replica(old, 0)
        self._count_replica(new, 1)
        self.metrics.swaps.labels("swapped").inc()
        LOG.info("serving version %s instead of version %s", name.version, old.name.version)

    async def _aside(self, work: Callable[..., Any], *arguments: Any) -> tuple[Any, BaseException | None]:
        """Runs work in the loader's thread: (its result, None), or (None, whatever it raised)."""
        running = asyncio.get_running_loop().run_in_executor(self.loader, work, *arguments)
        await asyncio.wait([running])
        error = running.exception()
        return (None, error) if error is not None else (running.result(), None)

    @property
    def _version(self) -> str:
        return self.served.name.version

    def _count_replica(self, served: Served, count: int) -> None:
        self.metrics.model_replicas.labels(served.name.name, served.name.version, self.settings.runtime).set(count)


def pin(source: str) -> tuple[ModelName, str]:
    """What a source stands for now, and a source that goes on standing for it.

    Raises:
        CotdError: the registry cannot be asked, or has no such model or alias.
    """
    from cotd.tracking import model_version

    name, version = model_version(source)
    return ModelName(name=name, version=version), f"models:/{name}/{version}" if version != "local" else source


def write_aloud(student: Student, text: str, loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[str | None]) -> None:
    """Writes a rationale in this thread, and puts its pieces, then None, into a queue of the event loop's."""

    def put(piece: str | None) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    try:
        student.explain_aloud(text, put)
    finally:
        put(None)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
