"""Which student is served: the first one, and the change to a new one when the alias moves (a hot swap)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from cotd.tasks.base import Task
from cotd.utils.text import first_line
from serve.endpoint.last_good import LastGood
from serve.endpoint.metrics import Metrics
from serve.endpoint.served import Served, pin
from serve.log import LOG
from serve.runtimes.base import Unfit
from serve.runtimes.registry import AUTO
from serve.schemas import ModelName
from serve.settings import Settings

# Seconds until a version that could not be loaded is tried again: doubled each time.
FIRST_RETRY, LONGEST_RETRY = 5.0, 600.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class FailedLoad:
    """A version that could not be loaded, perhaps for a temporary reason: a download that broke, a disk that was full.

    Attributes:
        attempts: how often it was tried.
        until: when it may be tried again, on the monotonic clock.
    """

    version: str
    attempts: int
    until: float

    @classmethod
    def after(cls, version: str, earlier: FailedLoad | None) -> FailedLoad:
        """The next failure of a version; `earlier` counts if it is of the same version."""
        attempts = earlier.attempts + 1 if earlier and earlier.version == version else 1
        return cls(version, attempts, time.monotonic() + min(LONGEST_RETRY, FIRST_RETRY * 2 ** min(attempts - 1, 30)))


class Champion:
    """The student that is served. Lives on one event loop; students are loaded in threads of their own.

    Attributes:
        larger: who answers what the champion is not sure of; the same for as long as the process lives.
        served: what new requests are served by.
        refused: the last version that was found unfit; it is not tried again until the alias moves on.
        failed: the last version that could not be loaded; it is tried again later.
    """

    def __init__(self, settings: Settings, metrics: Metrics):
        """Loads the student that the settings name, else the one that this machine's replicas last served by that name.

        Raises:
            CotdError: it cannot be loaded or does not pass its check, and there is none to fall back to.
        """
        self.settings = settings
        self.metrics = metrics
        self.refused: str | None = None
        self.failed: FailedLoad | None = None
        self.larger = in_short_lived_thread(self._load_larger)
        self.served = in_short_lived_thread(self._load_first)
        self._remember(self.served)
        self._count_replica(self.served, 1)
        if self.larger:
            self._count_replica(self.larger, 1)

    def close(self) -> None:
        """Takes this replica out of the metrics."""
        self._count_replica(self.served, 0)
        if self.larger:
            self._count_replica(self.larger, 0)

    async def watch(self) -> None:
        """Looks at the alias every `poll_seconds`, and serves the student it names."""
        while True:
            await asyncio.sleep(self.settings.poll_seconds * random.uniform(0.75, 1.25))  # not all replicas at once
            try:
                await self.refresh()
            except Exception:  # noqa: BLE001 - swapping must not end because of one failure
                LOG.exception("cannot look for a new version of %s; trying again", self.settings.student)

    async def refresh(self) -> None:
        """Looks at the alias once. Another version is loaded and checked; then one reference is exchanged.

        Requests that came in before keep the student they began with. A version that fails its check or has other answers is
        refused: it is logged and counted, and the old one stays. One that cannot be loaded is tried again later.
        """
        source, old = self.settings.student, self.served
        try:
            name, pinned = await asyncio.to_thread(in_short_lived_thread, partial(pin, source))
        except Exception as error:  # noqa: BLE001 - whatever it is, the old student is served
            LOG.warning("cannot look up %s, still serving version %s: %s", source, old.name.version, first_line(error))
            self.metrics.swaps.labels("registry_unreachable").inc()
            return
        if name == old.name:
            self.refused = self.failed = None
            return
        if name.version == self.refused or self._must_wait(name.version):
            return
        try:
            new = await asyncio.to_thread(in_short_lived_thread, partial(self._load, pinned, name))
            require_same_answers(new.student.task, old.student.task)
        except Exception as error:  # noqa: BLE001 - see above
            self._reject(name.version, error, still=old.name.version)
            return
        self._remember(new)
        self.served, self.refused, self.failed = new, None, None
        self._count_replica(old, 0)
        self._count_replica(new, 1)
        self.metrics.swaps.labels("swapped").inc()
        LOG.info("serving version %s instead of version %s", name.version, old.name.version)

    def _load_larger(self) -> Served | None:
        if self.settings.escalate is None:
            return None
        name, pinned = pin(self.settings.escalate)
        return Served.load(pinned, name, AUTO)

    def _load(self, source: str, name: ModelName) -> Served:
        return Served.load(source, name, self.settings.runtime, self.larger, self.settings.below)

    def _load_first(self) -> Served:
        source = self.settings.student
        version = None
        try:
            name, pinned = pin(source)
            version = name.version
            return self._load(pinned, name)
        except Exception as error:
            last = LastGood.read(self.metrics.folder, source) if self.metrics.folder else None
            if last is None or last.version == version:
                raise
            served = self._load(last.folder, ModelName(name=last.name, version=last.version))
            if version is None:
                LOG.warning("cannot look up %s, serving version %s again: %s", source, last.version, first_line(error))
                self.metrics.swaps.labels("registry_unreachable").inc()
            else:
                self._reject(version, error, still=last.version)
            return served

    def _remember(self, served: Served) -> None:
        """Records a student that passed its check, for replicas that start after the alias has moved to a bad one."""
        if self.metrics.folder is None or served.name.version == "local":
            return
        try:
            LastGood(self.settings.student, served.name.name, served.name.version, served.folder).write(self.metrics.folder)
        except OSError as error:  # a full disk is not a reason to stop serving
            LOG.warning("cannot record in %s which version is served: %s", self.metrics.folder, error)

    def _reject(self, version: str, error: Exception, still: str) -> None:
        """Records that a version is not served: for good if it is unfit, for a while if it could not be loaded."""
        if isinstance(error, Unfit):
            LOG.error("version %s is refused, still serving version %s: %s", version, still, first_line(error))
            self.metrics.swaps.labels("refused").inc()
            self.refused = version
            return
        self.failed = FailedLoad.after(version, self.failed)
        wait = self.failed.until - time.monotonic()
        message = "version %s cannot be loaded, still serving version %s, next attempt in %.0f s: %s"
        LOG.error(message, version, still, wait, first_line(error))
        self.metrics.swaps.labels("not_loaded").inc()

    def _must_wait(self, version: str) -> bool:
        return self.failed is not None and self.failed.version == version and time.monotonic() < self.failed.until

    def _count_replica(self, served: Served, count: int) -> None:
        self.metrics.model_replicas.labels(served.name.name, served.name.version, served.runtime_name).set(count)


def require_same_answers(new: Task, old: Task) -> None:
    """Raises Unfit if clients that expect the answers of one task would get those of another."""
    advice = "Start another endpoint for another task."
    if new.kind != old.kind:
        raise Unfit(f"its task '{new.name}' is {new.kind}, and that of this endpoint is {old.kind}. {advice}")
    if new.labels != old.labels:
        raise Unfit(f"its labels are {', '.join(new.labels)}, and those of this endpoint {', '.join(old.labels)}. {advice}")


def in_short_lived_thread(work: Callable[[], Result]) -> Result:
    """Runs work in a thread that ends with it, as do the threads that PyTorch computes with for it.

    OpenMP keeps some for every thread that has computed, and once there are more of them than CPUs, those that wait for
    work sleep instead of spinning: from then on a text takes half as long again.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as thread:
        return thread.submit(work).result()
