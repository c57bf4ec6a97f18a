"""Both clients against a server that is busy, guarded or absent, and the asynchronous one against the endpoint itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import httpx
import pytest

from cotd.errors import CotdError
from cotd.students.student import Student
from serve.client import LONGEST_WAIT, AsyncClient, Client, Failed, Rejected, backoff, parse_error
from serve.endpoint.endpoint import Endpoint
from serve.http.api import build_api
from serve.schemas import MAX_TEXTS, TextPrediction
from serve.settings import Settings

Response = tuple[int, dict[str, str], Any]  # status, headers, body

PREDICTION = {"label": "positive", "score": 0.9, "probabilities": {"negative": 0.1, "positive": 0.9}, "truncated": False}


def refusal(status: int, code: str, **headers: str) -> Response:
    return status, headers, {"error": {"code": code, "message": f"because of {code}", "request_id": "1", "details": []}}


@pytest.fixture
def server() -> Iterator[Callable[..., tuple[str, list[dict[str, Any]]]]]:
    """Starts a server that sends the given responses, then predictions; returns its address and the requests it gets."""
    started: list[ThreadingHTTPServer] = []

    def start(*responses: Response) -> tuple[str, list[dict[str, Any]]]:
        left, seen = list(responses), []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                seen.append({"token": self.headers.get("Authorization"), **body})
                good = {"model": {"name": "n", "version": "1"}, "predictions": [PREDICTION for _ in body["texts"]]}
                status, headers, content = left.pop(0) if left else (200, {}, good)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *arguments: Any) -> None:
                pass

        started.append(http := ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return f"http://127.0.0.1:{http.server_port}", seen

    yield start
    for http in started:
        http.shutdown()
        http.server_close()


def blocking(url: str, texts: list[str], choices: Any = None, rationale: bool = False, **options: Any) -> list[TextPrediction]:
    with Client(url, **options) as client:
        return client.predict(texts, choices, rationale)


def asynchronous(
    url: str, texts: list[str], choices: Any = None, rationale: bool = False, **options: Any
) -> list[TextPrediction]:
    async def ask() -> list[TextPrediction]:
        async with AsyncClient(url, **options) as client:
            return await client.predict(texts, choices, rationale)

    return asyncio.run(ask())


both = pytest.mark.parametrize("predict", [blocking, asynchronous])
Predict = Callable[..., list[TextPrediction]]


@both
def test_a_request_to_a_full_queue_is_repeated(server: Callable[..., Any], predict: Predict) -> None:
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    busy = [refusal(503, "queue_full", Retry_After=when) for when in ("0", past)]
    url, seen = server(*busy, refusal(500, "internal_error"))
    assert predict(url, ["fine"])[0].label == "positive"
    assert len(seen) == 4


@both
def test_it_gives_up_and_says_why(server: Callable[..., Any], predict: Predict) -> None:
    url, seen = server(*[refusal(503, "queue_full", Retry_After="0")] * 3)
    with pytest.raises(CotdError, match="answered 503: because of queue_full"):
        predict(url, ["fine"], retries=2)
    assert len(seen) == 3


@both
def test_texts_that_the_endpoint_fails_at_are_told_from_an_endpoint_that_is_away(
    server: Callable[..., Any], predict: Predict
) -> None:
    url, _ = server(refusal(500, "internal_error"))
    with pytest.raises(Failed):
        predict(url, ["fine"], retries=0)


@both
def test_an_invalid_request_is_not_repeated(server: Callable[..., Any], predict: Predict) -> None:
    url, seen = server(refusal(422, "invalid_request"))
    with pytest.raises(CotdError, match="answered 422: because of invalid_request"):
        predict(url, [""])
    assert len(seen) == 1


@both
def test_long_lists_are_split_and_the_token_is_sent(
    server: Callable[..., Any], predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COTD_SERVE_TOKEN", "a-token-long-enough")
    url, seen = server()
    assert len(predict(url, ["fine"] * (MAX_TEXTS + 1))) == MAX_TEXTS + 1
    assert sorted(len(request["texts"]) for request in seen) == [1, MAX_TEXTS]
    assert {request["token"] for request in seen} == {"Bearer a-token-long-enough"}


@both
def test_requests_become_as_small_as_the_endpoint_demands(server: Callable[..., Any], predict: Predict) -> None:
    url, seen = server(*[refusal(413, "too_many_texts")] * 2)
    assert len(predict(url, ["fine"] * 150)) == 150
    assert [len(request["texts"]) for request in seen[:2]] == [150, 75]
    assert all(len(request["texts"]) <= 75 for request in seen[2:])
    url, seen = server(refusal(413, "too_many_texts"))
    with pytest.raises(Rejected, match="because of too_many_texts"):
        predict(url, ["fine"])
    assert len(seen) == 1


@both
def test_options_go_with_their_texts(server: Callable[..., Any], predict: Predict) -> None:
    url, seen = server(refusal(413, "too_many_texts"))
    texts, choices = [f"question {i}" for i in range(4)], [[f"a{i}", f"b{i}"] for i in range(4)]
    assert len(predict(url, texts, choices)) == 4
    asked = {text: options for request in seen[1:] for text, options in zip(request["texts"], request["choices"], strict=True)}
    assert asked == dict(zip(texts, choices, strict=True))
    assert len(seen) == 3


@both
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"name": "n", "version": "1"}, "predictions": []}, "answered 2 texts with 0 predictions"),
        ({"status": "fine"}, "did not answer with predictions but with"),
    ],
)
def test_a_response_without_its_predictions_is_an_error(
    server: Callable[..., Any], predict: Predict, content: Any, message: str
) -> None:
    url, seen = server((200, {}, content))
    with pytest.raises(CotdError, match=message):
        predict(url, ["fine", "dull"])
    assert len(seen) == 1


@both
def test_an_endpoint_that_does_not_respond(predict: Predict) -> None:
    with pytest.raises(CotdError, match="Start the endpoint with `cotd serve`"):
        predict("http://127.0.0.1:9", ["fine"])


def test_retry_after_is_respected_within_limits() -> None:
    client = Client("http://127.0.0.1:9")
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=25), usegmt=True)
    absurd = "Wed, 21 Oct 2015 99999999999999999999:28:00 GMT"
    for value, low, high in [
        ("7", 7, 7),
        ("3600", 30, 30),
        (soon, 5, 25),
        ("soon", 0.1, 0.2),
        ("", 0.1, 0.2),
        (absurd, 0.1, 0.2),
    ]:
        wait = client.evaluate(0, httpx.Response(503, headers={"Retry-After": value}))
        assert low <= wait <= high, value


def test_waits_grow_and_differ() -> None:
    client = Client("http://127.0.0.1:9", retries=5)
    assert backoff(5000) <= LONGEST_WAIT
    waits = [[client.evaluate(attempt, httpx.ReadTimeout("")) for _ in range(20)] for attempt in range(4)]
    assert all(max(earlier) <= min(later) for earlier, later in pairwise(waits))
    assert len(set(waits[0])) > 1


def test_many_coroutines_share_a_client_of_a_small_queue(with_endpoint: Any, settings: Settings, student: Student) -> None:
    """Against the endpoint's own API: more texts are sent than may wait, and every prediction is of the right text."""
    texts = [f"number {i} {'good' if i % 3 else 'bad'}" for i in range(60)]
    settings = settings.model_copy(update={"max_texts": 4, "max_queued_texts": 8, "max_batch": 2})

    async def use(_: httpx.AsyncClient, endpoint: Endpoint) -> list[TextPrediction]:
        refused = 0
        api = httpx.ASGITransport(build_api(endpoint), raise_app_exceptions=False)

        class Impatient(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                nonlocal refused
                answer = await api.handle_async_request(request)
                if answer.status_code == 503:
                    refused += 1
                    answer.headers["Retry-After"] = "0"
                    await asyncio.sleep(0.05)  # so that retries do not take the processor from predicting
                return answer

        async with AsyncClient("http://test", retries=500, concurrency=16, transport=Impatient()) as client:
            parts = await asyncio.gather(*(client.predict(texts[i : i + 3]) for i in range(0, len(texts), 3)))
        assert refused
        return [prediction for part in parts for prediction in part]

    predictions = with_endpoint(settings, use)
    expected = student.predict(texts)
    assert [p.score for p in predictions] == pytest.approx([p.score for p in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(422, json={"error": {"code": "invalid_request", "message": "texts[0] is empty"}}), "texts[0] is empty"),
        (httpx.Response(502, text="<html>bad gateway</html>"), "<html>bad gateway</html>"),
        (httpx.Response(500, json=["odd"]), '["odd"]'),
    ],
)
def test_error_responses_of_any_shape_are_read(response: httpx.Response, message: str) -> None:
    assert parse_error(response)[1] == message


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_token_is_not_sent_unencrypted_to_another_machine(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTD_SERVE_TOKEN", "a-token-long-enough")
    for url in ("http://gpu-box:8000", "http://192.0.2.7", "http://127.0.0.1.evil.example"):
        with pytest.raises(CotdError, match=r"the token would be sent to .* unencrypted") as caught:
            client(url)
        assert "long-enough" not in str(caught.value)
        client(url, plain_http=True)
    for url in ("https://gpu-box", "http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000"):
        client(url)
    monkeypatch.delenv("COTD_SERVE_TOKEN")
    client("http://gpu-box:8000")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://[::1", "http://me:secret@host"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(CotdError, match=r"no address of an endpoint|holds credentials") as caught:
        Client(url)
    assert "secret" not in str(caught.value)
