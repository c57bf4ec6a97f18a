"""What the middleware does with every request: tokens, ids, limits on bodies, the log."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from serve.endpoint.endpoint import Endpoint
from serve.log import LOG
from serve.settings import Settings, token_sha256
from tests.serve.conftest import TOKEN
from tests.serve.http.conftest import Ask, error_of


def test_half_a_body_is_not_waited_for(settings: Settings, serve_http: Callable[[Settings], str]) -> None:
    url = httpx.URL(serve_http(settings.model_copy(update={"max_body_seconds": 0.3})))
    with socket.create_connection((url.host, url.port or 0), timeout=10) as connection:
        head = "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(f'{head}{{"texts": '.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # to the end: the connection is closed
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "request_timeout"
    slow = {"texts": ["A warm and funny film."], "rationale": True}
    assert httpx.post(url.join("v1/predict"), json=slow, trust_env=False).status_code == 200


def test_the_token_guards_what_is_worth_guarding(with_endpoint: Any, settings: Settings) -> None:
    async def use(client: httpx.AsyncClient, _: Endpoint) -> None:
        async def statuses(authorization: str | None) -> set[int]:
            headers = {"Authorization": authorization.encode("latin-1")} if authorization else {}
            answers = [await client.get(path, headers=headers) for path in ("/v1/model", "/metrics")]
            answers.append(await client.post("/v1/predict", json={"texts": "fine"}, headers=headers))
            for answer in answers:
                if answer.status_code == 401:
                    assert error_of(answer)["code"] == "unauthorized"
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
            return {a.status_code for a in answers}

        for refused in (None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer \xe9", f"Bearer {TOKEN}x"):
            assert await statuses(refused) == {401}
        for accepted in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
            assert await statuses(accepted) == {200}
        for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200

    with_endpoint(settings.model_copy(update={"token_sha256": token_sha256(TOKEN)}), use)


def test_a_name_that_is_not_the_endpoints_own_is_refused(ask: Ask) -> None:
    """A page of another site may have its name resolve to 127.0.0.1 (DNS rebinding)."""
    own = ("localhost", "127.0.0.1", "::1")
    for host in ("127.0.0.1:8000", "LOCALHOST", "[::1]:8000"):
        assert ask(path="/v1/model", headers={"Host": host}, allowed_hosts=own).status_code == 200
    for host in ("evil.example:8000", "127.0.0.1.evil.example", "[", ""):
        answer = ask({"texts": "fine"}, headers={"Host": host}, allowed_hosts=own)
        assert (answer.status_code, error_of(answer)["code"]) == (421, "unknown_host")
    assert ask(path="/healthz", headers={"Host": "10.0.0.7:8000"}, allowed_hosts=own).status_code == 200


def test_pages_of_allowed_origins_may_use_the_endpoint(with_endpoint: Any, settings: Settings) -> None:
    async def use(client: httpx.AsyncClient, _: Endpoint) -> None:
        preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
            answer = await client.options("/v1/predict", headers={"Origin": origin, **preflight})
            assert (answer.headers.get("Access-Control-Allow-Origin") == origin) == allowed
            answer = await client.post("/v1/predict", json={"texts": "fine"}, headers={"Origin": origin})
            assert answer.status_code == 401
            assert (answer.headers.get("Access-Control-Allow-Origin") == origin) == allowed

    changes = {"cors_origins": ("https://app.example",), "token_sha256": token_sha256(TOKEN)}
    with_endpoint(settings.model_copy(update=changes), use)


def test_heads_are_answered_as_gets_without_a_body(with_endpoint: Any, settings: Settings) -> None:
    async def use(client: httpx.AsyncClient, _: Endpoint) -> None:
        for path in ("/", "/healthz", "/readyz", "/ping", "/v1/model", "/metrics", "/openapi.json"):
            answer = await client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
            assert int(answer.headers["Content-Length"]) > 0
        assert (await client.head("/v1/predict")).status_code == 405

    with_endpoint(settings, use)


@pytest.mark.parametrize(("given", "kept"), [("abc-123", True), ("x" * 200, False), ("a b", False), (None, False)])
def test_request_ids_are_accepted_or_made(ask: Ask, given: str | None, kept: bool) -> None:
    made = ask(path="/healthz", headers={"X-Request-ID": given} if given else None).headers["X-Request-ID"]
    assert (made == given) if kept else re.fullmatch(r"[0-9a-f]{32}", made)


def test_the_log_names_requests_and_keeps_examples_to_itself(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    LOG.setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, LOG.name):
        ask({"texts": ["my secret example"]}, {"X-Request-ID": "abc"})
        ask({"texts": ["my secret example", 7]})
    assert re.search(r"abc POST /v1/predict 200 [\d.]+ ms texts=1 model=first/local", caplog.text)
    assert "422" in caplog.text
    assert "secret" not in caplog.text
    with caplog.at_level(logging.INFO, LOG.name):
        ask({"texts": ["my secret example"]}, log_texts=True)
    assert "my secret example" in caplog.text
