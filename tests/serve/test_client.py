"""The client against a server that is busy, guarded or away."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cotd.errors import CotdError
from serve.client import Client
from serve.schemas import MAX_TEXTS

Answer = tuple[int, dict[str, str], Any]


def refusal(status: int, code: str, **headers: str) -> Answer:
    return status, headers, {"error": {"code": code, "message": f"because of {code}", "request_id": "1", "details": []}}


@pytest.fixture
def server() -> Iterator[Callable[..., tuple[str, list[dict[str, Any]]]]]:
    """Starts a server that gives the listed answers, then predictions; returns its address and the requests it gets."""
    started: list[ThreadingHTTPServer] = []

    def start(*answers: Answer) -> tuple[str, list[dict[str, Any]]]:
        left, seen = list(answers), []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                seen.append({"token": self.headers.get("Authorization"), **body})
                row = {
                    "label": "positive",
                    "score": 0.9,
                    "probabilities": {"negative": 0.1, "positive": 0.9},
                    "truncated": False,
                }
                good = {"model": {"name": "n", "version": "1"}, "predictions": [row for _ in body["texts"]]}
                status, headers, content = left.pop(0) if left else (200, {}, good)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *arguments: Any) -> None:
                pass

        started.append(http := ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=http.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{http.server_port}", seen

    yield start
    for http in started:
        http.shutdown()
        http.server_close()


def test_a_full_queue_is_asked_again(server: Callable[..., Any]) -> None:
    url, seen = server(refusal(503, "queue_full", Retry_After="0"), refusal(500, "internal_error"))
    with Client(url) as client:
        assert client.predict(["fine"])[0].label == "positive"
    assert len(seen) == 3


def test_it_gives_up_and_says_why(server: Callable[..., Any]) -> None:
    url, seen = server(*[refusal(503, "queue_full", Retry_After="0")] * 3)
    with Client(url, retries=2) as client, pytest.raises(CotdError, match="answered 503: because of queue_full"):
        client.predict(["fine"])
    assert len(seen) == 3


def test_a_request_that_is_wrong_is_made_once(server: Callable[..., Any]) -> None:
    url, seen = server(refusal(422, "invalid_request"))
    with Client(url) as client, pytest.raises(CotdError, match="answered 422: because of invalid_request"):
        client.predict([""])
    assert len(seen) == 1


def test_long_lists_are_split_and_the_token_is_sent(server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTD_SERVE_TOKEN", "a-token-long-enough")
    url, seen = server()
    with Client(url) as client:
        assert len(client.predict(["fine"] * (MAX_TEXTS + 1))) == MAX_TEXTS + 1
    assert [len(request["texts"]) for request in seen] == [MAX_TEXTS, 1]
    assert {request["token"] for request in seen} == {"Bearer a-token-long-enough"}


def test_an_endpoint_that_is_away() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(CotdError, match="Start the endpoint with `cotd serve`"):
        client.predict(["fine"])
