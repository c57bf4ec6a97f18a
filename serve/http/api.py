"""The HTTP API over an endpoint: a plain FastAPI application, which Ray Serve runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request, Response, Security
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from cotd import __version__
from cotd.data.inputs import InputColumns
from cotd.evaluation.cascade import ESCALATED, STUDENT
from cotd.tasks.base import Task
from cotd.tasks.samples import Sample, sample_examples
from serve.endpoint.batcher import QueueFull
from serve.endpoint.endpoint import Endpoint
from serve.endpoint.served import Answer, Served
from serve.endpoint.stream import RationaleStream
from serve.http.errors import HANDLERS, Refused, documented, internal_error
from serve.http.guard import REQUEST_ID, Guard
from serve.http.invocations import read_invocation
from serve.http.openapi import make_document
from serve.http.pages import DOCS, page_response
from serve.log import LOG
from serve.schemas import (
    Escalation,
    Example,
    InvocationRequest,
    ModelResponse,
    PredictRequest,
    PredictResponse,
    RationalePiece,
    Status,
    TaskResponse,
    TextPrediction,
)

JSON_LINES, EVENTS = "application/x-ndjson", "text/event-stream"
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

    api = FastAPI(title="cotd", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    api.add_middleware(Guard, endpoint=endpoint, proxied=proxied)
    if origins := endpoint.settings.cors_origins:  # around the guard: a browser first asks without a token
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", REQUEST_ID],
            expose_headers=[REQUEST_ID, "Retry-After"],
        )
    for kind, handler in HANDLERS.items():
        api.add_exception_handler(kind, handler)
    # For the documentation only: the guard has checked the token before.
    bearer = [Security(HTTPBearer(auto_error=False))] if endpoint.settings.token_sha256 else []

    @api.post(
        "/v1/predict",
        dependencies=[*bearer, Depends(require_json)],
        response_model=PredictResponse,
        response_model_exclude_unset=True,
        responses={
            200: {"content": {kind: {"schema": {"type": "string"}} for kind in (JSON_LINES, EVENTS)}},
            **documented(400, 401, 408, 413, 415, 422, 500, 503),
        },
    )
    async def predict(body: PredictRequest, request: Request) -> Any:
        """Predicts one or many texts; with `"rationale": true` the student also explains.

        With `"stream": true` the response is JSON lines: the predictions, then `{"index", "rationale"}` with the next piece of
        a text's rationale. A stream that fails ends with a line `{"error"}`, which has the shape of all errors. With the header
        `Accept: text/event-stream` these are server-sent events, called `predictions`, `rationale` and `error`.
        """
        served = endpoint.served
        texts = accept(endpoint, served, body, request)
        as_events = EVENTS in request.headers.get("accept", "")
        if not (body.stream or as_events):
            return await predict_whole(endpoint, served, texts, body.rationale)
        pieces = endpoint.stream_rationales(texts) if body.rationale else None
        try:
            answers = await endpoint.predict(served, texts)
            response = make_response(served, answers)
            if pieces:
                pieces.writers = [served.writer(answer).runtime.student for answer in answers]
        except BaseException:
            if pieces:
                pieces.close()
            raise
        return StreamResponse(request, response, pieces, as_events)

    @api.post(
        "/invocations",
        dependencies=[*bearer, Depends(require_json)],
        response_model=PredictResponse,
        response_model_exclude_unset=True,
        responses=documented(400, 401, 408, 413, 415, 422, 500, 503),
    )
    async def invocations(body: InvocationRequest, request: Request) -> Any:
        """As /v1/predict, for clients of MLflow's model server and of SageMaker.

        Rows are read as the student's study reads them: a row may also have the columns of its input template.
        """
        served = endpoint.served
        columns = InputColumns.make(served.student.card, served.student.task)
        parsed = read_invocation(body, columns)
        return await predict_whole(endpoint, served, accept(endpoint, served, parsed, request), parsed.rationale)

    @api.get("/ping")
    async def ping() -> Status:
        """As /healthz, for SageMaker and clients of MLflow's model server."""
        return Status(status="ok")

    @api.get("/v1/model", dependencies=bearer, responses=documented(401))
    async def model() -> ModelResponse:
        """The student that is served: name, version, task, and its card (method, data, teacher, metrics)."""
        served = endpoint.served
        return ModelResponse(
            name=served.name.name,
            version=served.name.version,
            task=describe_task(served.student.task),
            can_explain=served.can_explain,
            runtime=served.runtime_name,
            loaded_at=served.loaded_at.isoformat(timespec="seconds"),
            limits={name: getattr(endpoint.settings, name) for name in SHOWN_LIMITS},
            card=served.student.card,
            escalation=describe_escalation(served),
            licences=served.licences,
        )

    @api.get("/healthz")
    async def healthz() -> Status:
        """Whether the process responds; restart it if it does not."""
        return Status(status="ok")

    @api.get("/readyz", responses=documented(503))
    async def readyz() -> Status:
        """Whether the queue has room for a request; if not, send requests elsewhere for a while."""
        if not endpoint.labels.has_room(endpoint.settings.max_texts):
            raise QueueFull(endpoint.labels.seconds_to_empty())
        return Status(status="ready")

    @api.get("/metrics", dependencies=bearer, response_class=Response, responses=documented(401))
    async def metrics() -> Response:
        """Prometheus metrics of all replicas on this machine."""
        content, kind = await asyncio.to_thread(endpoint.metrics.render)  # reads files of all replicas
        return Response(content, media_type=kind)

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return page_response()

    @api.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return page_response(DOCS)

    def document() -> dict[str, Any]:
        # Once: another student of this endpoint has the same answers, see `serve.endpoint.champion`.
        api.openapi_schema = api.openapi_schema or make_document(api, endpoint.served.student.task)
        return api.openapi_schema

    api.openapi = document  # type: ignore[method-assign]
    return api


async def require_json(request: Request) -> None:
    """Refuses a body that does not say that it is JSON: curl, for one, says that it is a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        said = f"Content-Type is {kind[:80]}" if kind else "Content-Type is missing"
        raise Refused(
            415, "unsupported_media_type", f"{said}; the body must be JSON. Send the header Content-Type: application/json."
        )


def accept(endpoint: Endpoint, served: Served, body: PredictRequest, request: Request) -> list[Sample]:
    """The texts of a valid request, with their options; noted for the log.

    Raises:
        Refused: the request exceeds a limit, or the student cannot serve it.
    """
    state = request.scope["state"]
    state |= {"texts": len(body.texts), "model": f"{served.name.name}/{served.name.version}"}
    if endpoint.settings.log_texts:
        LOG.info("%s texts %r", state["request_id"], body.texts)
    check_choices(served.student.task, body)
    check_limits(endpoint, served, body)
    if body.choices is None:
        return [Sample(text) for text in body.texts]
    return [Sample(text, tuple(options)) for text, options in zip(body.texts, body.choices, strict=True)]


async def predict_whole(endpoint: Endpoint, served: Served, texts: list[Sample], rationale: bool) -> PredictResponse:
    """The response to a request that is not streamed."""
    if rationale:
        endpoint.require_room(texts)
    # Labels first: if their queue is full, no rationale, which takes far longer, has been written in vain.
    answers = await endpoint.predict(served, texts)
    return make_response(served, answers, await endpoint.explain(served, texts, answers) if rationale else None)


def check_choices(task: Task, body: PredictRequest) -> None:
    """Raises Refused for a request without the options that the task needs, or with options that it has not."""
    if task.needs_choices and body.choices is None:
        message = f"the task '{task.name}' is {task.kind}: send `choices`, a list of options for each text."
        raise Refused(422, "choices_missing", message)
    if not task.needs_choices and body.choices is not None:
        answers = "its labels are fixed" if task.labels else "its answers are free"
        raise Refused(422, "choices_not_taken", f"the task '{task.name}' is {task.kind}: {answers}. Leave out `choices`.")


def check_limits(endpoint: Endpoint, served: Served, body: PredictRequest) -> None:
    """Raises Refused for a valid request that exceeds a limit, or that the student cannot serve."""
    settings, count = endpoint.settings, len(body.texts)
    if count > settings.max_texts:
        message = f"{count:,} texts; the limit is {settings.max_texts:,} a request. Send several requests."
        raise Refused(413, "too_many_texts", message)
    for i, text in enumerate(body.texts):
        options = body.choices[i] if body.choices else []
        if (length := len(text) + sum(map(len, options))) > settings.max_characters:
            with_options = " with its options" if options else ""
            message = (
                f"texts[{i}] has {length:,} characters{with_options}; the limit is {settings.max_characters:,}. Shorten it."
            )
            raise Refused(413, "text_too_long", message)
    if body.rationale and not served.can_explain:
        method = served.student.card.get("method")
        message = f"this student was trained by '{method}' and has learned no rationales. Ask for labels only."
        raise Refused(422, "no_rationales", message)
    if body.rationale and count > settings.max_queued_rationales:
        message = f"{count:,} texts; the limit with rationales is {settings.max_queued_rationales:,}. Send several requests."
        raise Refused(413, "too_many_texts", message)


def make_response(served: Served, answers: list[Answer], rationales: Sequence[str] | None = None) -> PredictResponse:
    """Answers in the wire format; `rationale` is unset if there are none, `answered_by` without a cascade, `unread` if it is not so."""
    rows = [TextPrediction(**vars(answer.prediction), **({"unread": True} if answer.unread else {})) for answer in answers]
    if served.larger:
        for row, answer in zip(rows, answers, strict=True):
            row.answered_by = ESCALATED if answer.by is served.larger else STUDENT
    if rationales is not None:
        for row, rationale in zip(rows, rationales, strict=True):
            row.rationale = rationale
    return PredictResponse(model=served.name, predictions=rows)


def describe_escalation(served: Served) -> Escalation | None:
    """The larger student of a cascade in the wire format."""
    if (larger := served.larger) is None:
        return None
    threshold, runtime, card = served.threshold, larger.runtime_name, larger.student.card
    return Escalation(**larger.name.model_dump(), threshold=threshold, runtime=runtime, card=card)


def describe_task(task: Task) -> TaskResponse:
    """A task in the wire format."""
    words = {key: getattr(task, key) for key in ("name", "kind", "noun", "instruction", "label_name", "needs_choices")}
    examples = [Example(text=s.text, choices=list(s.choices) if s.choices else None) for s in sample_examples(task)]
    return TaskResponse(**words, labels=list(task.labels), examples=examples)


class StreamResponse(StreamingResponse):
    """A streamed response: JSON lines, or server-sent events. However it ends, its rationales' places in the queue are freed."""

    def __init__(self, request: Request, first: PredictResponse, pieces: RationaleStream | None, as_events: bool):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy is to keep pieces back
        super().__init__(self._lines(request, first, pieces), headers=headers, media_type=EVENTS if as_events else JSON_LINES)
        self.pieces, self.as_events = pieces, as_events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self.pieces:
                self.pieces.close()

    def line(self, event: str, content: BaseModel) -> str:
        """A piece of the response."""
        json = content.model_dump_json(exclude_unset=True)
        return f"event: {event}\ndata: {json}\n\n" if self.as_events else f"{json}\n"

    async def _lines(self, request: Request, first: PredictResponse, pieces: RationaleStream | None) -> AsyncIterator[str]:
        yield self.line("predictions", first)
        if pieces is None:
            return
        try:
            async for index, rationale in pieces:
                yield self.line("rationale", RationalePiece(index=index, rationale=rationale))
        except Exception as error:  # noqa: BLE001 - the status has been sent: the body is what is left to report it in
            yield self.line("error", internal_error(request, error))
