"""The HTTP API over an endpoint: routes, errors, documentation. A plain FastAPI application; Ray Serve runs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.types import Receive, Scope, Send

from cotd import __version__
from cotd.students.student import Prediction
from serve.endpoint.batcher import QueueFull
from serve.endpoint.endpoint import LOG, Endpoint, Served
from serve.endpoint.stream import RationaleStream
from serve.http.errors import HANDLERS, Refused, documented, failed
from serve.http.guard import Guard
from serve.http.pages import DOCS, page_response
from serve.schemas import ModelResponse, PredictRequest, PredictResponse, RationalePiece, Status, TextPrediction

DESCRIPTION = "Sentiment of reviews, from a student distilled from a large language model."
LINES = "application/x-ndjson"


def build_api(endpoint: Endpoint, proxied: bool = False) -> FastAPI:
    """The application that answers for an endpoint, and watches the alias while it runs.

    Args:
        proxied: whether Serve's proxy is in front, which returns request ids itself.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(endpoint.watch()) if endpoint.settings.poll_seconds else None
        yield
        if watching:
            watching.cancel()
        endpoint.close()

    api = FastAPI(title="cotd", description=DESCRIPTION, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    api.add_middleware(Guard, endpoint=endpoint, proxied=proxied)
    for kind, answer in HANDLERS.items():
        api.add_exception_handler(kind, answer)
    # For the documentation: the guard has checked before.
    bearer = [Security(HTTPBearer(auto_error=False))] if endpoint.settings.token_sha256 else []

    @api.post(
        "/v1/predict",
        dependencies=bearer,
        response_model=PredictResponse,
        response_model_exclude_none=True,
        responses={200: {"content": {LINES: {"schema": {"type": "string"}}}}, **documented(400, 401, 408, 413, 422, 500, 503)},
    )
    async def predict(body: PredictRequest, request: Request) -> Any:
        """Classifies one or many reviews; with `"rationale": true` the student also explains.

        With `"stream": true` the answer is a line of JSON each: the predictions, then `{"index", "rationale"}` with the
        next piece of a text's rationale. A stream that cannot go on ends with a line `{"error"}`, of the shape of all errors.
        """
        served = endpoint.served
        state = request.scope["state"]
        state |= {"texts": len(body.texts), "model": f"{served.name.name}/{served.name.version}"}
        if endpoint.settings.log_texts:
            LOG.info("%s texts %r", state["request_id"], body.texts)
        check_limits(endpoint, served, body)
        if body.stream:
            pieces = endpoint.stream_rationales(served, body.texts) if body.rationale else None
            with giving_back(pieces):
                answer = make_answer(served, await endpoint.predict(served, body.texts), None)
            return Lines(request, answer, pieces)
        if body.rationale:
            endpoint.require_room(body.texts)
        # First the labels: if their queue is full, no rationale, which takes far longer, has been written for nothing.
        predictions = await endpoint.predict(served, body.texts)
        return make_answer(served, predictions, await endpoint.explain(served, body.texts) if body.rationale else None)

    @api.get("/v1/model", dependencies=bearer, responses=documented(401))
    async def model() -> ModelResponse:
        """What is served: name, version, and the student's card (method, data, teacher, metrics)."""
        served, settings = endpoint.served, endpoint.settings
        limits = {k: getattr(settings, k) for k in ("max_texts", "max_characters", "max_body_bytes", "max_queued_texts")}
        return ModelResponse(
            name=served.name.name,
            version=served.name.version,
            runtime=served.computed_by,
            loaded_at=served.loaded_at.isoformat(timespec="seconds"),
            limits=limits,
            card=served.student.card,
            licences=served.licences,
        )

    @api.get("/healthz")
    async def healthz() -> Status:
        """Whether the process answers: restart it if it does not."""
        return Status(status="ok")

    @api.get("/readyz", responses=documented(503))
    async def readyz() -> Status:
        """Whether a request would be taken: send it elsewhere for a while if not."""
        if endpoint.labels.queued + endpoint.settings.max_texts > endpoint.settings.max_queued_texts:
            raise QueueFull(endpoint.labels.seconds_to_empty())
        return Status(status="ready")

    @api.get("/metrics", dependencies=bearer, response_class=Response, responses=documented(401))
    async def metrics() -> Response:
        """Prometheus metrics of all replicas on this machine."""
        content, kind = endpoint.metrics.render()
        return Response(content, media_type=kind)

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return page_response()

    @api.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return page_response(DOCS)

    return api


def check_limits(endpoint: Endpoint, served: Served, body: PredictRequest) -> None:
    """Raises Refused for a request that is well-formed but more than the endpoint, or the student, can do."""
    settings = endpoint.settings
    if len(body.texts) > settings.max_texts:
        limit = f"{len(body.texts):,} texts; the limit is {settings.max_texts:,} a request. Send several requests."
        raise Refused(413, "too_many_texts", limit)
    for i, text in enumerate(body.texts):
        if len(text) > settings.max_characters:
            limit = f"texts[{i}] has {len(text):,} characters; the limit is {settings.max_characters:,}. Shorten it."
            raise Refused(413, "text_too_long", limit)
    if body.rationale and not served.student.can_explain:
        method = served.student.card.get("method")
        raise Refused(422, "no_rationales", f"this student was trained by '{method}' and has learned no rationales")
    if body.rationale and len(body.texts) > settings.max_queued_rationales:
        limit = f"{len(body.texts):,} texts; the limit with rationales is {settings.max_queued_rationales:,}. Send several requests."
        raise Refused(413, "too_many_texts", limit)


def make_answer(served: Served, predictions: list[Prediction], rationales: list[str] | None) -> PredictResponse:
    whys: Sequence[str | None] = rationales or [None] * len(predictions)
    rows = [
        TextPrediction(label=p.label, score=p.score, probabilities=p.probabilities, truncated=p.truncated, rationale=why)
        for p, why in zip(predictions, whys, strict=True)
    ]
    return PredictResponse(model=served.name, predictions=rows)


@contextlib.contextmanager
def giving_back(pieces: RationaleStream | None) -> Iterator[None]:
    """Closes what has been reserved if the block, which is to come before it, fails."""
    try:
        yield
    except BaseException:
        if pieces:
            pieces.close()
        raise


class Lines(StreamingResponse):
    """A streamed answer: JSON, a line each. However it ends, the room of its rationales is given back."""

    def __init__(self, request: Request, answer: PredictResponse, pieces: RationaleStream | None):
        super().__init__(self._lines(request, answer, pieces), media_type=LINES)
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self.pieces:
                self.pieces.close()

    async def _lines(self, request: Request, answer: PredictResponse, pieces: RationaleStream | None) -> AsyncIterator[str]:
        yield answer.model_dump_json(exclude_none=True) + "\n"
        if pieces is None:
            return
        try:
            async for index, rationale in pieces:
                yield RationalePiece(index=index, rationale=rationale).model_dump_json() + "\n"
        except Exception as error:  # noqa: BLE001 - the status has been sent: what is left is to say it in the body
            yield failed(request, error).model_dump_json() + "\n"
