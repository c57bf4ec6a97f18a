"""The API over a real, tiny student: answers, refusals, and what is on record about them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

import serve.http.api
from cotd.students.student import Student
from serve.endpoint.endpoint import Endpoint
from serve.log import LOG
from serve.schemas import PredictRequest
from serve.settings import Settings, digest

TEXTS = ["A warm and funny film.", "Dull.", "word " * 200]
TOKEN = "a-token-long-enough"

Ask = Callable[..., httpx.Response]


@pytest.fixture
def settings(student_folder: Path) -> Settings:
    return Settings(student=str(student_folder), poll_seconds=0)


@pytest.fixture
def ask(with_endpoint: Any) -> Callable[..., httpx.Response]:
    """One request: to /v1/predict with a JSON body, or a GET of another path."""

    def run(
        settings: Settings, body: Any = None, headers: dict[str, str] | None = None, path: str = "/v1/predict"
    ) -> httpx.Response:
        async def use(client: httpx.AsyncClient, _: Endpoint) -> httpx.Response:
            if body is None:
                return await client.get(path, headers=headers)
            return await client.post(path, json=body, headers=headers)

        return with_endpoint(settings, use)

    return run


def refusal(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, checked to be of the one shape."""
    error = response.json()["error"]
    assert set(error) == {"code", "message", "request_id", "details"}
    assert error["request_id"] == response.headers["X-Request-ID"]
    return error


def test_predictions_are_the_students(ask: Ask, settings: Settings, student_folder: Path) -> None:
    answer = ask(settings, {"texts": TEXTS, "rationale": True}).json()
    assert answer["model"] == {"name": "first", "version": "local"}
    student = Student.load(student_folder)
    for row, ours, why in zip(answer["predictions"], student.predict(TEXTS), student.explain(TEXTS), strict=True):
        assert (row["label"], row["truncated"], row["rationale"]) == (ours.label, ours.truncated, why)
        assert row["probabilities"] == pytest.approx(ours.probabilities, abs=1e-5)
    assert [row["truncated"] for row in answer["predictions"]] == [False, False, True]
    assert "rationale" not in ask(settings, {"texts": "fine"}).json()["predictions"][0]


def test_a_streamed_rationale_is_the_whole_one_in_pieces(ask: Ask, settings: Settings) -> None:
    whole = ask(settings, {"texts": TEXTS, "rationale": True}).json()
    response = ask(settings, {"texts": TEXTS, "rationale": True, "stream": True})
    first, *pieces = [json.loads(line) for line in response.text.splitlines()]
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert [p["label"] for p in first["predictions"]] == [p["label"] for p in whole["predictions"]]
    for i, prediction in enumerate(whole["predictions"]):
        assert "".join(p["rationale"] for p in pieces if p["index"] == i).strip() == prediction["rationale"]
    assert len(pieces) > len(TEXTS)


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"texts": ["fine"] * 5}, 413, "too_many_texts", "5 texts; the limit is 4 a request. Send several requests."),
        ({"texts": ["fine", "x" * 101]}, 413, "text_too_long", "texts[1] has 101 characters; the limit is 100."),
        ({"texts": ["x" * 1001]}, 413, "body_too_large", "the body is larger than 1,000 bytes"),
        ({"texts": []}, 422, "invalid_request", "body.texts: List should have at least 1 item"),
        ({"texts": ["fine", " \n"]}, 422, "invalid_request", "texts[1] is empty"),
        ({"texts": ["fine"], "rational": True}, 422, "invalid_request", "body.rational: Extra inputs are not permitted"),
        ({"texts": [7]}, 422, "invalid_request", "body.texts.0: Input should be a valid string"),
        ([], 422, "invalid_request", "body: Input should be"),
    ],
)  # fmt: skip
def test_refusals_say_why(ask: Ask, settings: Settings, body: Any, status: int, code: str, message: str) -> None:
    limits = settings.model_copy(update={"max_texts": 4, "max_characters": 100, "max_body_bytes": 1000})
    response = ask(limits, body)
    assert response.status_code == status
    error = refusal(response)
    assert error["code"] == code
    assert message in error["message"]


MALFORMED = [
    b"", b"{", b"\xff\xfe\x00", b'"' + b"\xed\xa0\x80" + b'"', b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"NaN",
    b'{"texts": ["\\ud800"]}', b'{"texts": "fine", "\\ud800": 1}', b'{"texts": [1e999]}', b'{"texts": {"0": "fine"}}',
    b'{"texts": "fine", "x": ' + b"9" * 5000 + b"}", b'{"texts": "fine", "rationale": "perhaps"}',
]  # fmt: skip


def test_no_body_breaks_the_endpoint(with_endpoint: Any, settings: Settings) -> None:
    async def use(client: httpx.AsyncClient, _: Endpoint) -> None:
        for body in MALFORMED:
            answer = await client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 422), body[:50]
            refusal(answer)
        assert (await client.post("/v1/predict", json={"texts": "fine"})).status_code == 200

    with_endpoint(settings, use)


@pytest.mark.parametrize(
    "body", [{"texts": [1] * 1_000_000}, {str(key): 1 for key in range(200_000)}, {"texts": [[]] * 100_000, "x": {}}]
)
def test_a_body_of_many_errors_costs_no_more_than_one(ask: Ask, settings: Settings, body: Any) -> None:
    response = ask(settings, body)
    assert response.status_code == 422
    assert len(refusal(response)["details"]) <= 2
    assert len(response.content) < 1000
    tracemalloc.start()
    with pytest.raises(ValidationError):
        PredictRequest.model_validate(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_odd_texts_are_classified(ask: Ask, settings: Settings) -> None:
    texts = ["\x00", "\u202e\u200b", "🎬" * 50, "<script>", "a" * 5000, "\U0010ffff"]
    answer = ask(settings, {"texts": texts})
    assert answer.status_code == 200
    assert len(answer.json()["predictions"]) == len(texts)


def test_a_student_without_rationales_says_so(ask: Ask, settings: Settings, student_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(student_folder, folder)
    card = json.loads((folder / "cotd.json").read_text())
    (folder / "cotd.json").write_text(json.dumps({**card, "method": "distill", "writes_rationales": False}))
    response = ask(settings.model_copy(update={"student": str(folder)}), {"texts": ["fine"], "rationale": True})
    assert response.status_code == 422
    assert refusal(response)["code"] == "no_rationales"


def test_a_full_queue_answers_503_and_when_to_come_back(with_endpoint: Any, settings: Settings) -> None:
    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        requests = [client.post("/v1/predict", json={"texts": ["fine"] * 4}) for _ in range(20)]
        answers = await asyncio.gather(*requests)
        statuses = [a.status_code for a in answers]
        assert set(statuses) == {200, 503}
        for answer in answers:
            if answer.status_code == 503:
                assert int(answer.headers["Retry-After"]) >= 1
                assert refusal(answer)["code"] == "queue_full"
        assert (await client.get("/readyz")).status_code == 200
        assert endpoint.labels.queued == 0

    with_endpoint(settings.model_copy(update={"max_texts": 4, "max_queued_texts": 8, "max_batch": 4}), use)


def test_readiness_is_of_a_queue_that_would_take_a_request(with_endpoint: Any, settings: Settings) -> None:
    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        endpoint.labels.queued = 5
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert refusal(answer)["code"] == "queue_full"
        assert int(answer.headers["Retry-After"]) >= 1
        endpoint.labels.queued = 0

    with_endpoint(settings.model_copy(update={"max_texts": 4, "max_queued_texts": 8}), use)


def test_no_more_streams_are_taken_than_may_wait(with_endpoint: Any, settings: Settings) -> None:
    body = {"texts": ["A warm and funny film."], "rationale": True}

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        streams = [client.post("/v1/predict", json={**body, "stream": True}) for _ in range(12)]
        answers = await asyncio.gather(*streams)
        assert sorted(a.status_code for a in answers) == [200] * 2 + [503] * 10
        assert endpoint.streaming == 0
        whole, *streams = [client.post("/v1/predict", json={**body, "stream": stream}) for stream in (False, True, True, True)]
        answers = await asyncio.gather(*streams, whole)
        assert [a.status_code for a in answers] == [200, 200, 503, 503], "what is not streamed counts too"
        endpoint.labels.max_queued = 0
        assert (await client.post("/v1/predict", json={**body, "stream": True})).status_code == 503
        assert endpoint.streaming == 0

    with_endpoint(settings.model_copy(update={"max_queued_rationales": 2}), use)


def test_a_stream_that_fails_says_so_in_its_last_line(ask: Ask, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream_rationale(student: Student, text: str, on_text: Callable[[str], None]) -> None:
        on_text("The reviewer")
        raise RuntimeError("no memory")

    monkeypatch.setattr(Student, "stream_rationale", stream_rationale)
    response = ask(settings, {"texts": TEXTS, "rationale": True, "stream": True})
    predictions, piece, last = [json.loads(line) for line in response.text.splitlines()]
    assert "predictions" in predictions
    assert piece == {"index": 0, "rationale": "The reviewer"}
    assert last["error"]["code"] == "internal_error"
    assert last["error"]["request_id"] == response.headers["X-Request-ID"]


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
                    assert refusal(answer)["code"] == "unauthorized"
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
            return {a.status_code for a in answers}

        for refused in (None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer \xe9", f"Bearer {TOKEN}x"):
            assert await statuses(refused) == {401}
        for accepted in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
            assert await statuses(accepted) == {200}
        for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200

    with_endpoint(settings.model_copy(update={"token_sha256": digest(TOKEN)}), use)


@pytest.mark.parametrize(("given", "kept"), [("abc-123", True), ("x" * 200, False), ("a b", False), (None, False)])
def test_request_ids_are_accepted_or_made(ask: Ask, settings: Settings, given: str | None, kept: bool) -> None:
    made = ask(settings, path="/healthz", headers={"X-Request-ID": given} if given else None).headers["X-Request-ID"]
    assert (made == given) if kept else re.fullmatch(r"[0-9a-f]{32}", made)


def test_the_log_names_requests_and_keeps_reviews_to_itself(
    ask: Ask, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    LOG.setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, LOG.name):
        ask(settings, {"texts": ["my secret review"]}, {"X-Request-ID": "abc"})
        ask(settings, {"texts": ["my secret review", 7]})
    assert re.search(r"abc POST /v1/predict 200 [\d.]+ ms texts=1 model=first/local", caplog.text)
    assert "422" in caplog.text
    assert "secret" not in caplog.text
    with caplog.at_level(logging.INFO, LOG.name):
        ask(settings.model_copy(update={"log_texts": True}), {"texts": ["my secret review"]})
    assert "my secret review" in caplog.text


def test_the_model_is_described(ask: Ask, settings: Settings) -> None:
    model = ask(settings, path="/v1/model").json()
    assert (model["name"], model["version"], model["runtime"]) == ("first", "local", "onnxruntime")
    assert model["card"]["method"] == "cot_labelled"
    assert model["limits"]["max_texts"] == 256
    assert set(model["licences"]) == {"embedded:rotten-tomatoes", "embedded:smollm2-135m-instruct"}


def test_metrics_count_what_happened(with_endpoint: Any, settings: Settings) -> None:
    async def use(client: httpx.AsyncClient, _: Endpoint) -> str:
        await client.post("/v1/predict", json={"texts": TEXTS})
        await client.post("/v1/predict", json={"texts": []})
        await client.get("/no/such/path")
        return (await client.get("/metrics")).text

    lines = with_endpoint(settings, use).splitlines()
    for line in (
        'cotd_requests_total{method="POST",route="/v1/predict",status="200"} 1.0',
        'cotd_requests_total{method="POST",route="/v1/predict",status="422"} 1.0',
        'cotd_requests_total{method="other",route="other",status="404"} 1.0',
        'cotd_request_seconds_count{route="/v1/predict"} 2.0',
        'cotd_batch_texts_sum{work="label"} 3.0',
        'cotd_queued_texts{work="label"} 0.0',
        "cotd_truncated_texts_total 1.0",
        'cotd_model_replicas{name="first",runtime="onnxruntime",version="local"} 1.0',
        'cotd_model_swaps_total{outcome="refused"} 0.0',
    ):
        assert line in lines
    labels = [float(line.split()[-1]) for line in lines if line.startswith("cotd_predictions_total")]
    assert sum(labels) == 3


def test_the_dashboard_asks_for_metrics_that_there_are(ask: Ask, settings: Settings) -> None:
    declared = set(re.findall(r"^# TYPE (cotd_\w+)", ask(settings, path="/metrics").text, re.MULTILINE))
    there = declared | {f"{name}_{part}" for name in declared for part in ("bucket", "count", "sum")}
    dashboard = json.loads((Path(serve.__file__).parent / "deploy" / "grafana.json").read_text())
    asked = {name for panel in dashboard["panels"] for t in panel["targets"] for name in re.findall(r"cotd_\w+", t["expr"])}
    assert len(asked) >= 8
    assert asked <= there


def test_the_documentation_has_examples_and_errors(ask: Ask, settings: Settings) -> None:
    assert "security" not in ask(settings, path="/openapi.json").text
    document = ask(settings.model_copy(update={"token_sha256": digest(TOKEN)}), path="/openapi.json").json()
    predict = document["paths"]["/v1/predict"]["post"]
    assert set(predict["responses"]) == {"200", "400", "401", "408", "413", "422", "500", "503"}
    for status in ("401", "413", "422", "503"):
        assert predict["responses"][status]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorResponse")
    for name in ("PredictRequest", "PredictResponse", "ErrorResponse"):
        assert document["components"]["schemas"][name]["examples"]
    assert predict["security"] == [{"HTTPBearer": []}]
