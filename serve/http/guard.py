"""Middleware for every request: its id, the token, limits on its body, a log line, metrics."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.endpoint.endpoint import Endpoint
from serve.http.errors import Refused, misdirected, unauthorized
from serve.log import LOG
from serve.settings import token_sha256

REQUEST_ID = "X-Request-ID"
VALID_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
# Routes that need no token: for load balancers, browsers and readers of the documentation.
PROBED_ROUTES = {"/healthz", "/ping", "/readyz"}  # by load balancers, which know a replica by its address alone
OPEN_ROUTES = {"/", *PROBED_ROUTES, "/docs", "/openapi.json"}


class Guard:
    """ASGI middleware around the whole application.

    Args:
        proxied: whether Serve's proxy is in front, which makes and returns request ids itself.
    """

    def __init__(self, app: ASGIApp, endpoint: Endpoint, proxied: bool):
        self.app = app
        self.endpoint = endpoint
        self.proxied = proxied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        is_head = scope["method"] == "HEAD"
        if is_head:  # as a GET, without its body
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        client_id = headers.get(REQUEST_ID, "")
        state = scope.setdefault("state", {})
        state["request_id"] = client_id if VALID_ID.fullmatch(client_id) else uuid.uuid4().hex
        returned_by_proxy = self.proxied and client_id == state["request_id"]
        status = 500  # if the application raises

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not returned_by_proxy:
                    MutableHeaders(scope=message)[REQUEST_ID] = state["request_id"]
            await send({**message, "body": b""} if is_head and message["type"] == "http.response.body" else message)

        settings, route = self.endpoint.settings, get_route_path(scope)
        self.endpoint.metrics.in_flight.inc()
        try:
            # Before the body is read: a request that is not allowed costs nothing.
            if route not in PROBED_ROUTES and not is_allowed_host(settings.allowed_hosts, headers):
                await misdirected(Request(scope))(scope, receive, send_with_id)
            elif route in OPEN_ROUTES or has_token(settings.token_sha256, headers):
                await self.app(scope, self.limited(headers, receive), send_with_id)
            else:
                await unauthorized(Request(scope))(scope, receive, send_with_id)
        finally:
            self.endpoint.metrics.in_flight.dec()
            self._record(scope, status, time.perf_counter() - started)

    def limited(self, headers: Headers, receive: Receive) -> Receive:
        """`receive`, which refuses a body as it arrives if it is too large, announces to be, or takes too long."""
        limit, seconds = self.endpoint.settings.max_body_bytes, self.endpoint.settings.max_body_seconds
        announced = headers.get("content-length", "")
        deadline = asyncio.get_running_loop().time() + seconds
        seen, complete = 0, False

        async def receive_limited() -> Message:
            nonlocal seen, complete
            if complete:  # the next message is a disconnect, which may come as late as the response
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                reason = f"the body had not arrived after {seconds:g} s. Send it again."
                raise Refused(408, "request_timeout", reason, {"Connection": "close"}) from None
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > limit or (announced.isdecimal() and int(announced[:18]) > limit):
                raise Refused(413, "body_too_large", f"the body is larger than {limit:,} bytes. Send several requests.")
            return message

        return receive_limited

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        metrics, state = self.endpoint.metrics, scope["state"]
        metrics.requests.labels(scope["method"] if route != "other" else "other", route, str(status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        if route not in OPEN_ROUTES or status >= 500:
            facts = {key: state[key] for key in ("texts", "model", "error") if key in state}
            tail = "".join(f" {key}={value}" for key, value in facts.items())
            LOG.info("%s %s %s %d %.1f ms%s", state["request_id"], scope["method"], route, status, seconds * 1000, tail)


def is_allowed_host(allowed: Sequence[str] | None, headers: Headers) -> bool:
    """Whether a request calls the endpoint by one of its names. A page that has its own name resolve to this machine does not."""
    if allowed is None:
        return True
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname in {host.strip("[]").lower() for host in allowed}
    except ValueError:
        return False


def has_token(expected: str | None, headers: Headers) -> bool:
    """Whether a request has the token whose SHA-256 is `expected`, or needs none."""
    if expected is None:
        return True
    scheme, _, token = headers.get("authorization", "").partition(" ")
    # Digests, compared in constant time: timing reveals neither the token nor its length.
    return scheme.lower() == "bearer" and hmac.compare_digest(token_sha256(token.strip()), expected)
