"""Error responses: one shape for all, with a code for programs and a message for people; never what the client sent."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.endpoint.batcher import Closed, QueueFull
from serve.log import LOG
from serve.schemas import Detail, ErrorResponse, Problem

MAX_DETAILS = 20


class Refused(HTTPException):
    """A request that is refused, with an HTTP status and what `ErrorResponse` says."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(status, message, headers)
        self.code = code


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI documentation of error responses."""
    return {s: {"model": ErrorResponse, "description": HTTPStatus(s).phrase} for s in statuses}


def make_error(request: Request, code: str, message: str, details: Sequence[Detail] = ()) -> ErrorResponse:
    """An error in the one shape; its code is logged with the request."""
    state = request.scope["state"]
    state["error"] = code
    return ErrorResponse(error=Problem(code=code, message=message, request_id=state["request_id"], details=list(details)))


def internal_error(request: Request, error: Exception) -> ErrorResponse:
    """A defect, whose traceback is in the log under the request's id; or the endpoint is shutting down."""
    if isinstance(error, Closed):
        return make_error(request, "shutting_down", "the endpoint is shutting down. Send the request again.")
    LOG.error("%s failed", request.scope["state"]["request_id"], exc_info=error)
    return make_error(request, "internal_error", "the endpoint failed. Look up this request's id in its log.")


def unauthorized(request: Request) -> Response:
    """The response to a request without the token."""
    error = make_error(request, "unauthorized", "send the endpoint's token: Authorization: Bearer TOKEN")
    return JSONResponse(error.model_dump(), 401, {"WWW-Authenticate": "Bearer"})


def misdirected(request: Request) -> Response:
    """The response to a request that calls the endpoint by a name that is not its own."""
    message = (
        "the request's Host is no name of this endpoint. Use its address, or allow the name: allowed_hosts (--allow-host)."
    )
    return JSONResponse(make_error(request, "unknown_host", message).model_dump(), 421)


async def handle_refusal(request: Request, error: Any) -> Response:
    """Refused by the endpoint, or by the framework: an unknown route or method, or a body that is not JSON."""
    code = error.code if isinstance(error, Refused) else HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return JSONResponse(make_error(request, code, str(error.detail)).model_dump(), error.status_code, error.headers)


async def handle_invalid(request: Request, error: Any) -> Response:
    """A body that does not fit the schema."""
    details = [
        Detail(field=".".join(map(printable, e["loc"])), message=e["msg"].removeprefix("Value error, "))
        for e in error.errors()[:MAX_DETAILS]
    ]
    message = "; ".join(f"{d.field}: {d.message}" for d in details[:3])
    return JSONResponse(make_error(request, "invalid_request", message, details).model_dump(), 422)


def printable(part: str | int) -> str:
    """A part of a field's path; it may be a key that the client made up."""
    return str(part)[:40].encode("utf-8", "replace").decode()


async def handle_full_queue(request: Request, error: Any) -> Response:
    """Too many texts are waiting."""
    message = f"the queue is full. Try again in {error.retry_after} s."
    return JSONResponse(make_error(request, "queue_full", message).model_dump(), 503, {"Retry-After": str(error.retry_after)})


async def handle_closed(request: Request, error: Exception) -> Response:
    """The endpoint shuts down; another replica may answer."""
    return JSONResponse(internal_error(request, error).model_dump(), 503, {"Retry-After": "1"})


async def handle_crash(request: Request, error: Exception) -> Response:
    """Any other exception."""
    return JSONResponse(internal_error(request, error).model_dump(), 500)


HANDLERS: dict[type[Exception], Any] = {
    HTTPException: handle_refusal,
    RequestValidationError: handle_invalid,
    QueueFull: handle_full_queue,
    Closed: handle_closed,
    Exception: handle_crash,
}
