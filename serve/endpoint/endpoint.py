"""The endpoint: the student that is served, its queues, and the change to a new champion. Knows neither HTTP nor Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from cotd import assets
from cotd.data.files import FILE_TYPES
from cotd.students.base_models import resolve_model
from cotd.students.student import Prediction, Student
from cotd.utils.text import first_line
from serve.endpoint.batcher import Batcher, QueueFull
from serve.endpoint.last_good import LastGood
from serve.endpoint.metrics import Metrics
from serve.endpoint.stream import RationaleStream
from serve.runtimes.base import Runtime, Unfit
from serve.runtimes.registry import choose_runtime, make_runtime
from serve.schemas import ModelName
from serve.settings import Settings

LOG = logging.getLogger("ray.serve.cotd")  # Serve writes what its children log to the replica's file
# Seconds until a version that could not be loaded is tried again: doubled each time.
FIRST_RETRY, LONGEST_RETRY = 5.0, 600.0


@dataclass(frozen=True, eq=False)
class Served:
    """A student, ready to answer. Requests hold on to the one they began with.

    Attributes:
        computed_by: the runtime's name.
    """

    name: ModelName
    student: Student
    runtime: Runtime
    computed_by: str
    folder: str
    loaded_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def load(cls, source: str, name: ModelName, runtime: str) -> Served:
        """Loads and checks a student.

        Raises:
            CotdError: it cannot be loaded.
            Unfit: it does not pass its check.
        """
        folder = resolve_model(source)
        student = Student.load(folder)
        return cls(name, student, make_runtime(runtime, student), choose_runtime(runtime, student), folder)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        return self.student.predictions(*self.runtime.label_logits(texts))

    def explain(self, texts: Sequence[str]) -> list[str]:
        return self.student.explain(texts)

    @property
    def licences(self) -> dict[str, str]:
        """Of the reviews, the teacher and the base model that the student comes from: source → licence, where it is known."""
        card = self.student.card
        sources = [card.get("base"), (card.get("data") or {}).get("source"), (card.get("teacher") or {}).get("model")]
        return {s: licence_of(s) for s in sources if isinstance(s, str)}


@dataclass(frozen=True)
class Setback:
    """A version that could not be loaded, which may be nobody's fault: a download that broke, a disk that was full.

    Attributes:
        attempts: how often it was tried.
        until: when it may be tried again, on the monotonic clock.
    """

    version: str
    attempts: int
    until: float

    @classmethod
    def after(cls, version: str, earlier: Setback | None) -> Setback:
        attempts = earlier.attempts + 1 if earlier and earlier.version == version else 1
        return cls(version, attempts, time.monotonic() + min(LONGEST_RETRY, FIRST_RETRY * 2 ** min(attempts - 1, 30)))


def licence_of(source: str) -> str:
    """The licence of an embedded asset; of anything else, where to look."""
    if assets.is_embedded(source):
        return assets.get_asset(source).licence
    here = Path(source).suffix in FILE_TYPES or Path(source).is_absolute()
    return "unknown: a file of its owner's" if here else f"unknown: see hub:{source}"


class Endpoint:
    """Answers with the current student. Everything but the computing happens on one event loop.

    Attributes:
        served: what new requests are answered with.
        refused: the version that was last found unfit; not tried again until the alias moves on.
        setback: the version that could last not be loaded; tried again after a while, and then after a longer one.
        streaming: texts whose rationales are being streamed, or are about to be.
    """

    def __init__(self, settings: Settings):
        """Loads the student that the settings name, or else the one that this machine's replicas served last for that name.

        Raises:
            CotdError: it cannot be loaded or does not pass its check, and there is none to fall back to.
        """
        import torch

        from cotd.storage.tracking_store import use_tracking

        torch.set_num_threads(settings.threads)
        use_tracking(settings.tracking_uri)
        self.settings = settings
        self.metrics = Metrics(settings.metrics_folder)
        self.refused: str | None = None
        self.setback: Setback | None = None
        self.streaming = 0
        self.served = in_passing(self._first)
        self._remember(self.served)
        self._count_replica(self.served, 1)
        self.labels = self._batcher("label", Served.predict, settings.max_queued_texts)
        self.rationales = self._batcher("rationale", Served.explain, settings.max_queued_rationales)

    def _batcher(self, work: str, compute: Callable[[Served, list[str]], Sequence[Any]], max_queued: int) -> Batcher:
        def on_batch(texts: int, seconds: float) -> None:
            self.metrics.batch_texts.labels(work).observe(texts)
            self.metrics.batch_seconds.labels(work).observe(seconds)

        return Batcher(compute, self.settings.max_batch, max_queued, on_batch, self.metrics.queued.labels(work).set)

    def close(self) -> None:
        for worker in (self.labels.worker, self.rationales.worker):
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
        self.require_room(texts)
        return await self.rationales.submit(served, texts)

    def require_room(self, texts: Sequence[str]) -> None:
        """Raises QueueFull if the rationales of so many texts more may not wait."""
        if self.streaming + self.rationales.queued + len(texts) > self.settings.max_queued_rationales:
            raise QueueFull(self.rationales.seconds_to_empty())

    def stream_rationales(self, served: Served, texts: Sequence[str]) -> RationaleStream:
        """The rationales of texts, piece by piece.

        Raises:
            QueueFull: too many rationales wait or are being written already; raised by the call, not by the iterator.
        """
        self.require_room(texts)

        def reserve(texts: int) -> None:
            self.streaming += texts

        return RationaleStream(served.student, texts, self.rationales.worker, reserve)

    # --- the champion -------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Looks at the alias again and again, and changes to the student it names."""
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            await self.refresh()

    async def refresh(self) -> None:
        """Looks at the alias once. Another version is loaded aside and checked; then one reference is exchanged.

        Requests that came in before end on the student they began with. A version that fails its check or has other
        labels is refused: a line in the log, a count in the metrics, and the old one stays. One that cannot be loaded is
        tried again later.
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
            self.refused = self.setback = None
        if name == self.served.name or name.version == self.refused or self._waits(name.version):
            return
        new, error = await self._aside(Served.load, source, name, self.settings.runtime)
        if error is None and new.student.task.labels != self.served.student.task.labels:
            error = Unfit(f"its labels are {', '.join(new.student.task.labels)}; start another endpoint for another task")
        if error is not None:
            self._put_off(name.version, error, self._version)
            return
        self._remember(new)
        old, self.served, self.refused, self.setback = self.served, new, None, None
        self._count_replica(old, 0)
        self._count_replica(new, 1)
        self.metrics.swaps.labels("swapped").inc()
        LOG.info("serving version %s instead of version %s", name.version, old.name.version)

    def _first(self) -> Served:
        """The student to begin with."""
        settings = self.settings
        version = None
        try:
            name, pinned = pin(settings.student)
            version = name.version
            return Served.load(pinned, name, settings.runtime)
        except Exception as error:
            before = LastGood.read(self.metrics.folder, settings.student) if self.metrics.folder else None
            if before is None or before.version == version:
                raise
            served = Served.load(before.folder, ModelName(name=before.name, version=before.version), settings.runtime)
            if version is None:
                LOG.warning(
                    "cannot look up %s, serving version %s again: %s", settings.student, before.version, first_line(error)
                )
                self.metrics.swaps.labels("registry_unreachable").inc()
            else:
                self._put_off(version, error, before.version)
            return served

    def _remember(self, served: Served) -> None:
        """Notes a student that passed its check, for replicas that start when the alias has moved on to one that does not."""
        if self.metrics.folder is None or served.name.version == "local":
            return
        try:
            LastGood(self.settings.student, served.name.name, served.name.version, served.folder).write(self.metrics.folder)
        except OSError as error:  # a full disk is no reason to stop answering
            LOG.warning("cannot note which version is served in %s: %s", self.metrics.folder, error)

    def _put_off(self, version: str, error: BaseException, serving: str) -> None:
        """Notes that a version is not to be served: for good if it is unfit, for a while if it could not be loaded."""
        if isinstance(error, Unfit):
            LOG.error("version %s is refused, still serving version %s: %s", version, serving, first_line(error))
            self.metrics.swaps.labels("refused").inc()
            self.refused = version
            return
        self.setback = Setback.after(version, self.setback)
        LOG.error(
            "version %s cannot be loaded, still serving version %s, next try in %.0f s: %s",
            version, serving, self.setback.until - time.monotonic(), first_line(error),
        )  # fmt: skip
        self.metrics.swaps.labels("not_loaded").inc()

    def _waits(self, version: str) -> bool:
        return self.setback is not None and self.setback.version == version and time.monotonic() < self.setback.until

    async def _aside(self, work: Callable[..., Any], *arguments: Any) -> tuple[Any, BaseException | None]:
        """Runs work in a thread of its own: (its result, None), or (None, whatever it raised)."""
        running = asyncio.get_running_loop().run_in_executor(None, in_passing, partial(work, *arguments))
        await asyncio.wait([running])
        error = running.exception()
        return (None, error) if error is not None else (running.result(), None)

    @property
    def _version(self) -> str:
        return self.served.name.version

    def _count_replica(self, served: Served, count: int) -> None:
        self.metrics.model_replicas.labels(served.name.name, served.name.version, served.computed_by).set(count)


def in_passing(work: Callable[[], Any]) -> Any:
    """Runs work in a thread that ends with it, as do the threads that PyTorch computes with for it.

    OpenMP keeps some for every thread that has computed, and once there are more of them than CPUs, those that wait for
    work sleep instead of spinning: from then on a text takes half as long again.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as thread:
        return thread.submit(work).result()


def pin(source: str) -> tuple[ModelName, str]:
    """What a source stands for now, and a source that goes on standing for it.

    Raises:
        CotdError: the registry cannot be asked, or has no such model or alias.
    """
    from cotd.storage.model_cache import model_version

    name, version = model_version(source)
    return ModelName(name=name, version=version), f"models:/{name}/{version}" if version != "local" else source
