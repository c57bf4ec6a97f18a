"""The HTTP API over an endpoint: a plain FastAPI application, which Ray Serve runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.types import Receive, Scope, Send

from cotd import __version__
from cotd.students.student import Prediction
from serve.endpoint.batcher import QueueFull
from serve.endpoint.endpoint import Endpoint
from serve.endpoint.served import Served
from serve.endpoint.stream import RationaleStream
from serve.http.errors import HANDLERS, Refused, documented, internal_error
from serve.http.guard import Guard
from serve.http.pages import DOCS, page_response
from serve.log import LOG
from serve.schemas import ModelResponse, PredictRequest, PredictResponse, RationalePiece, Status, TextPrediction

DESCRIPTION = "Sentiment of examples, from a student distilled from a large language model."
JSON_LINES = "application/x-ndjson"
SHOWN_LIMITS = ("max_texts", "max_characters", "max_body_bytes", "max_queued_texts")


def build_api(endpoint: Endpoint, proxied: bool = False) -> FastAPI:
    """The application of an endpoint, which also watches the alias while it runs.

    Args:
        proxied: whether Serve's proxy is in front, which returns request ids itself.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(endpoint.champion.watch()) if endpoint.settings.poll_seconds else None
        yield
        if watching:
            watching.cancel()
        endpoint.close()

    api = FastAPI(title="cotd", description=DESCRIPTION, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    api.add_middleware(Guard, endpoint=endpoint, proxied=proxied)
    for kind, handler in HANDLERS.items():
        api.add_exception_handler(kind, handler)
    # For the documentation only: the guard has checked the token before.
    bearer = [Security(HTTPBearer(auto_error=False))] if endpoint.settings.token_sha256 else []

    @api.post(
        "/v1/predict",
        dependencies=bearer,
        response_model=PredictResponse,
        response_model_exclude_none=True,
        responses={
            200: {"content": {JSON_LINES: {"schema": {"type": "string"}}}},
            **documented(400, 401, 408, 413, 422, 500, 503),
        },
    )
    async def predict(body: PredictRequest, request: Request) -> Any:
        """Classifies one or many examples; with `"rationale": true` the student also explains.

        With `"stream": true` the response is JSON lines: the predictions, then `{"index", "rationale"}` with the next piece of
        a text's rationale. A stream that fails ends with a line `{"error"}`, which has the shape of all errors.
        """
        served = endpoint.served
        state = request.scope["state"]
        state |= {"texts": len(body.texts), "model": f"{served.name.name}/{served.name.version}"}
        if endpoint.settings.log_texts:
            LOG.info("%s texts %r", state["request_id"], body.texts)
        check_limits(endpoint, served, body)
        if body.stream:
            pieces = endpoint.stream_rationales(served, body.texts) if body.rationale else None
            try:
                response = make_response(served, await endpoint.predict(served, body.texts))
            except BaseException:
                if pieces:
                    pieces.close()
                raise
            return LinesResponse(request, response, pieces)
        if body.rationale:
            endpoint.require_room(body.texts)
        # Labels first: if their queue is full, no rationale, which takes far longer, has been written in vain.
        predictions = await endpoint.predict(served, body.texts)
        return make_response(served, predictions, await endpoint.explain(served, body.texts) if body.rationale else ())

    @api.get("/v1/model", dependencies=bearer, responses=documented(401))
    async def model() -> ModelResponse:
        """The student that is served: name, version, and its card (method, data, teacher, metrics)."""
        served = endpoint.served
        return ModelResponse(
            name=served.name.name,
            version=served.name.version,
            runtime=served.runtime_name,
            loaded_at=served.loaded_at.isoformat(timespec="seconds"),
            limits={name: getattr(endpoint.settings, name) for name in SHOWN_LIMITS},
            card=served.student.card,
            licences=served.licences,
        )

    @api.get("/healthz")
    async def healthz() -> Status:
        """Whether the process responds; restart it if it does not."""
        return Status(status="ok")

    @api.get("/readyz", responses=documented(503))
    async def readyz() -> Status:
        """Whether the queue has room for a request; if not, send requests elsewhere for a while."""
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
    """Raises Refused for a valid request that exceeds a limit, or that the student cannot serve."""
    settings, count = endpoint.settings, len(body.texts)
    if count > settings.max_texts:
        message = f"{count:,} texts; the limit is {settings.max_texts:,} a request. Send several requests."
        raise Refused(413, "too_many_texts", message)
    for i, text in enumerate(body.texts):
        if len(text) > settings.max_characters:
            message = f"texts[{i}] has {len(text):,} characters; the limit is {settings.max_characters:,}. Shorten it."
            raise Refused(413, "text_too_long", message)
    if body.rationale and not served.student.can_explain:
        method = served.student.card.get("method")
        message = f"this student was trained by '{method}' and has learned no rationales. Ask for labels only."
        raise Refused(422, "no_rationales", message)
    if body.rationale and count > settings.max_queued_rationales:
        message = f"{count:,} texts; the limit with rationales is {settings.max_queued_rationales:,}. Send several requests."
        raise Refused(413, "too_many_texts", message)


def make_response(served: Served, predictions: list[Prediction], rationales: Sequence[str | None] = ()) -> PredictResponse:
    """Predictions in the wire format."""
    rows = [
        TextPrediction(label=p.label, score=p.score, probabilities=p.probabilities, truncated=p.truncated, rationale=why)
        for p, why in zip(predictions, rationales or [None] * len(predictions), strict=True)
    ]
    return PredictResponse(model=served.name, predictions=rows)


class LinesResponse(StreamingResponse):
    """A streamed response: JSON lines. However it ends, its rationales' places in the queue are freed."""

    def __init__(self, request: Request, first: PredictResponse, pieces: RationaleStream | None):
        super().__init__(self._lines(request, first, pieces), media_type=JSON_LINES)
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self.pieces:
                self.pieces.close()

    async def _lines(self, request: Request, first: PredictResponse, pieces: RationaleStream | None) -> AsyncIterator[str]:
        yield first.model_dump_json(exclude_none=True) + "\n"
        if pieces is None:
            return
        try:
            async for index, rationale in pieces:
                yield RationalePiece(index=index, rationale=rationale).model_dump_json() + "\n"
        except Exception as error:  # noqa: BLE001 - the status has been sent: the body is what is left to report it in
            yield internal_error(request, error).model_dump_json() + "\n"
