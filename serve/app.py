"""The Ray Serve application: a student behind `POST /v1/predict`, batched across requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from fastapi import FastAPI, HTTPException
from ray import serve

from cotd.errors import CotdError
from serve.schemas import ModelName, PredictRequest, PredictResponse, TextPrediction

APP = "cotd-student"
api = FastAPI(title="cotd", description="Sentiment of reviews, from a distilled T5 student.", version="1")


@serve.deployment(name="StudentServer", max_ongoing_requests=256, graceful_shutdown_timeout_s=5)
@serve.ingress(api)
class StudentServer:
    """One replica: a student, and a thread that computes, so that health checks are answered meanwhile."""

    def __init__(self, source: str, tracking_uri: str | None, name: str, version: str, threads: int):
        import torch

        from cotd.student import Student
        from cotd.tracking import use_tracking

        torch.set_num_threads(threads)
        use_tracking(tracking_uri)
        self.student = Student.load(source)
        self.name = ModelName(name=name, version=version)
        self.worker = ThreadPoolExecutor(max_workers=1)
        self.student.predict(["warm up"])

    # A lone request waits a millisecond for company; under load batches fill while the last one computes.
    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def predict_batch(self, texts: list[str]) -> list[Any]:
        return await asyncio.get_running_loop().run_in_executor(self.worker, self.student.predict, texts)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)
    async def explain_batch(self, texts: list[str]) -> list[str]:
        return await asyncio.get_running_loop().run_in_executor(self.worker, self.student.explain, texts)

    @api.post("/v1/predict", response_model_exclude_none=True)
    async def predict(self, request: PredictRequest) -> PredictResponse:
        """Classifies one or many reviews; with `"rationale": true` the student also explains."""
        if request.rationale and not self.student.can_explain:
            raise HTTPException(
                422, f"this student was trained by '{self.student.card.get('method')}' and has learned no rationales"
            )
        predictions = await asyncio.gather(*(self.predict_batch(t) for t in request.texts))
        rationales: list[str | None] = [None] * len(request.texts)
        if request.rationale:
            rationales = list(await asyncio.gather(*(self.explain_batch(t) for t in request.texts)))
        rows = [
            TextPrediction(label=p.label, score=p.score, probabilities=p.probabilities, truncated=p.truncated, rationale=r)
            for p, r in zip(predictions, rationales, strict=True)
        ]
        return PredictResponse(model=self.name, predictions=rows)

    @api.get("/v1/model")
    async def model(self) -> dict[str, Any]:
        """What is served: name, version, and the student's card (method, data, teacher, metrics)."""
        return {**self.name.model_dump(), "card": self.student.card}

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Answers as soon as the student is loaded."""
        return {"status": "ok"}


@contextlib.contextmanager
def serving(
    source: str, tracking_uri: str | None, host: str = "127.0.0.1", port: int = 8000, replicas: int = 1, cpus: float = 1
) -> Iterator[str]:
    """Serves a student for the duration of a block, in the running Ray.

    Args:
        source: anything `Student.load` takes. `models:/NAME@ALIAS` is pinned to the version it names now.
        cpus: CPUs and threads a replica has.

    Yields:
        The endpoint's address, once it answers.
    """
    from cotd.student import resolve_model
    from cotd.tracking import model_version, use_tracking

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    use_tracking(tracking_uri)
    if not source.startswith("models:/"):
        source = resolve_model(source)
    name, version = model_version(source)
    pinned = f"models:/{name}/{version}" if version != "local" else source
    have = ray.cluster_resources().get("CPU", 0)
    if replicas * cpus > have:
        raise CotdError(
            f"{replicas} replicas of {cpus:g} CPUs need more than the {have:g} that Ray has. Lower --replicas or --cpus."
        )
    deployment = StudentServer.options(num_replicas=replicas, ray_actor_options={"num_cpus": cpus})  # type: ignore[attr-defined]
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
    try:
        bound = deployment.bind(pinned, tracking_uri, name, version, max(1, int(cpus)))
        serve.run(bound, name=APP, route_prefix="/", logging_config=quiet)
        yield f"http://{host}:{port}"
    finally:
        serve.shutdown()


def require_port(host: str, port: int) -> None:
    """Raises a CotdError if the address cannot be listened on."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise CotdError(
            f"cannot listen on {host}:{port} ({error.strerror}). Stop what uses the port, or choose another with --port."
        ) from error
