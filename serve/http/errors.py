"""Errors as answers: one shape for all, a code for programs and a message for people; never what was sent."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.endpoint.batcher import QueueFull
from serve.endpoint.endpoint import LOG
from serve.schemas import Detail, ErrorResponse, Problem

MOST_DETAILS = 20


class Refused(HTTPException):
    """A request that is not answered: an HTTP status, and what `ErrorResponse` says."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(status, message, headers)
        self.code = code


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of error answers."""
    return {s: {"model": ErrorResponse, "description": HTTPStatus(s).phrase} for s in statuses}


def problem(
    request: Request, status: int, code: str, message: str, details: list[Detail] | None = None, headers: Any = None
) -> JSONResponse:
    return JSONResponse(described(request, code, message, details).model_dump(), status, headers)


def described(request: Request, code: str, message: str, details: list[Detail] | None = None) -> ErrorResponse:
    """An error in the one shape, noted for the log."""
    request.scope["state"]["error"] = code
    return ErrorResponse(
        error=Problem(code=code, message=message, request_id=request.scope["state"]["request_id"], details=details or [])
    )


async def answer_refusal(request: Request, error: Any) -> Response:
    """Refused by the endpoint, or by the framework: no such route, no such method, a body that is no JSON."""
    code = error.code if isinstance(error, Refused) else HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return problem(request, error.status_code, code, str(error.detail), headers=error.headers)


async def answer_invalid(request: Request, error: Any) -> Response:
    """Says where and what is wrong, never what was sent."""
    details = [
        Detail(field=".".join(map(printable, e["loc"])), message=e["msg"].removeprefix("Value error, "))
        for e in error.errors()[:MOST_DETAILS]
    ]
    message = "; ".join(f"{d.field}: {d.message}" for d in details[:3])
    return problem(request, 422, "invalid_request", message, details)


def printable(part: str | int) -> str:
    """A part of a field's place: it may be a key that the client made up."""
    return str(part)[:40].encode("utf-8", "replace").decode()


async def answer_queue_full(request: Request, error: Any) -> Response:
    message = f"too many texts wait already. Try again in {error.retry_after} s."
    return problem(request, 503, "queue_full", message, headers={"Retry-After": str(error.retry_after)})


async def answer_failure(request: Request, error: Exception) -> Response:
    return JSONResponse(failed(request, error).model_dump(), 500)


def failed(request: Request, error: Exception) -> ErrorResponse:
    """A defect: the traceback is in the log under the request's id."""
    LOG.error("%s failed", request.scope["state"]["request_id"], exc_info=error)
    return described(request, "internal_error", "the endpoint failed; its log has the reason under this request's id")


def unauthorized(request: Request) -> Response:
    message = "send the endpoint's token: Authorization: Bearer TOKEN"
    return problem(request, 401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})


HANDLERS: dict[type[Exception], Any] = {
    HTTPException: answer_refusal,
    RequestValidationError: answer_invalid,
    QueueFull: answer_queue_full,
    Exception: answer_failure,
}
