"""The endpoint: the champion and its queues, for labels, texts handed on, and rationales. Knows neither HTTP nor Ray."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from string import ascii_lowercase
from typing import Any

from cotd.students.student import Prediction
from cotd.tasks.base import Task
from cotd.tasks.samples import Sample, sample_examples
from cotd.utils.text import first_line
from serve.endpoint.batcher import Batcher, QueueFull
from serve.endpoint.champion import Champion
from serve.endpoint.metrics import Metrics
from serve.endpoint.served import Answer, Served
from serve.endpoint.stream import RationaleStream
from serve.log import LOG
from serve.settings import Settings


class Endpoint:
    """Predicts with the current student. Everything except computing happens on one event loop.

    Attributes:
        streaming: texts whose rationales are being streamed, or are about to be.
    """

    def __init__(self, settings: Settings):
        """Loads the student; errors are those of `Champion`."""
        import torch

        from cotd.storage.tracking_store import use_tracking

        torch.set_num_threads(settings.threads)
        use_tracking(settings.tracking_uri)
        self.settings = settings
        self.metrics = Metrics(settings.metrics_folder)
        self.champion = Champion(settings, self.metrics)
        self.streaming = 0
        self.labels = self._batcher("label", Served.predict, settings.max_queued_texts, settings.reserved_texts)
        # A queue of its own: who is not handed on does not wait for the larger student.
        self.escalated = self._batcher("escalated", Served.predict, settings.max_queued_texts, settings.reserved_texts)
        self.rationales = self._batcher("rationale", Served.explain, settings.max_queued_rationales)

    def _batcher(
        self, work: str, compute: Callable[[Served, list[Sample]], Sequence[Any]], max_queued: int, reserved: int = 0
    ) -> Batcher:
        def on_batch(texts: int, seconds: float) -> None:
            self.metrics.batch_texts.labels(work).observe(texts)
            self.metrics.batch_seconds.labels(work).observe(seconds)

        return Batcher(compute, self.settings.max_batch, max_queued, on_batch, self.metrics.queued.labels(work).set, reserved)

    def close(self) -> None:
        """Stops computing; what is queued is refused."""
        self.labels.close()
        self.escalated.close()
        self.rationales.close()
        self.champion.close()

    @property
    def served(self) -> Served:
        """What new requests are served by."""
        return self.champion.served

    async def check_health(self) -> None:
        """Raises if a student cannot compute: an example of its own, unless batches have been computed since the last call.

        An idle student that writes before it answers, which takes seconds, is asked only after a batch of it failed.
        """
        await self._check(self.labels, self.served)
        if self.served.larger:
            await self._check(self.escalated, self.served.larger)

    async def _check(self, batcher: Batcher, served: Served) -> None:
        computed, failed = batcher.succeeded, batcher.failed
        batcher.succeeded = batcher.failed = 0
        if batcher.closed or (
            not failed and (computed or served.student.free_answers or served.student.rationale_before_label)
        ):
            return
        probe = list(sample_examples(served.student.task)[:1])
        try:
            (prediction,) = await asyncio.get_running_loop().run_in_executor(batcher.worker, served.predict, probe)
            if prediction.score is not None and not math.isfinite(prediction.score):
                raise RuntimeError("a probability is not a number")
        except Exception as error:
            batcher.failed = failed or 1  # until it has computed again
            LOG.error("the student cannot compute: %s", first_line(error))
            raise

    async def predict(self, served: Served, texts: Sequence[Sample]) -> list[Answer]:
        """The answer to each text; in a cascade the larger student's where the served one is not sure.

        Raises:
            QueueFull: too many texts are waiting.
            Closed: the endpoint is shutting down.
        """
        answers = [Answer(prediction, served) for prediction in await self.labels.submit(served, texts)]
        if served.larger and (unsure := served.unsure([answer.prediction for answer in answers])):
            for i, prediction in zip(
                unsure, await self.escalated.submit(served.larger, [texts[i] for i in unsure]), strict=True
            ):
                answers[i] = Answer(prediction, served.larger)
            self.metrics.escalated.inc(len(unsure))
        for answer, text in zip(answers, texts, strict=True):
            label = counted_as(answer.prediction, text, served.student.task)
            self.metrics.predictions.labels(label, answer.by.name.version).inc()
        self.metrics.truncated.inc(sum(answer.prediction.truncated for answer in answers))
        answers = [replace(answer, unread=answer.by.unread(text)) for answer, text in zip(answers, texts, strict=True)]
        self.metrics.unread.inc(sum(answer.unread for answer in answers))
        return answers

    async def explain(self, served: Served, texts: Sequence[Sample], answers: Sequence[Answer]) -> list[str]:
        """The rationale for each text, by the student that answered it, or by the other one of a cascade if only that can.

        Raises:
            QueueFull: too many rationales are waiting or being written.
            Closed: the endpoint is shutting down.
        """
        self.require_room(texts)
        rows: dict[Served, list[int]] = {}
        for i, answer in enumerate(answers):
            rows.setdefault(served.writer(answer), []).append(i)
        written = [self.rationales.submit(writer, [texts[i] for i in indices]) for writer, indices in rows.items()]
        rationales = [""] * len(texts)
        for indices, part in zip(rows.values(), await asyncio.gather(*written), strict=True):
            for i, rationale in zip(indices, part, strict=True):
                rationales[i] = rationale
        return rationales

    def require_room(self, texts: Sequence[Sample]) -> None:
        """Raises QueueFull if the queue has no room for the rationales of the texts."""
        if self.streaming + self.rationales.queued + len(texts) > self.settings.max_queued_rationales:
            raise QueueFull(self.rationales.seconds_to_empty())

    def stream_rationales(self, texts: Sequence[Sample]) -> RationaleStream:
        """The rationales of texts, piece by piece, once the stream has its `writers`; to be closed by the caller.

        Raises:
            QueueFull: too many rationales are waiting or being written; raised by this call, not by the iteration.
        """
        self.require_room(texts)

        def reserve(change: int) -> None:
            self.streaming += change

        return RationaleStream(texts, self.rationales.worker, reserve)


def counted_as(prediction: Prediction, text: Sample, task: Task) -> str:
    """The label of the metric that counts a prediction: one of few, whatever clients send and students write."""
    if prediction.label is None:
        return "none"
    if task.labels:
        return prediction.label
    if text.choices is None:
        return "answered"
    return f"({ascii_lowercase[text.choices.index(prediction.label)]})"
