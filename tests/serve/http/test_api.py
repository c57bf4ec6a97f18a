"""The API over a real, untrained student: predictions, streams, full queues, the model, metrics, documentation."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import serve
from cotd.students.student import Student
from serve.endpoint.endpoint import Endpoint
from serve.settings import Settings, token_sha256
from tests.serve.conftest import TOKEN
from tests.serve.http.conftest import Ask, error_of

TEXTS = ["A warm and funny film.", "Dull.", "word " * 200]


def test_predictions_are_the_students(ask: Ask, student: Student) -> None:
    response = ask({"texts": TEXTS, "rationale": True}).json()
    assert response["model"] == {"name": "first", "version": "local"}
    for row, expected, why in zip(response["predictions"], student.predict(TEXTS), student.explain(TEXTS), strict=True):
        assert (row["label"], row["truncated"], row["rationale"]) == (expected.label, expected.truncated, why)
        assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert [row["truncated"] for row in response["predictions"]] == [False, False, True]
    assert "rationale" not in ask({"texts": "fine"}).json()["predictions"][0]


def test_a_text_that_the_student_cannot_read_is_marked(ask: Ask) -> None:
    foreign, plain = ask({"texts": ["茶很好喝", "A fine tea."]}).json()["predictions"]
    assert foreign["unread"] is True
    assert "unread" not in plain


def test_a_streamed_rationale_is_the_whole_one_in_pieces(ask: Ask) -> None:
    whole = ask({"texts": TEXTS, "rationale": True}).json()
    response = ask({"texts": TEXTS, "rationale": True, "stream": True})
    first, *pieces = [json.loads(line) for line in response.text.splitlines()]
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert [p["label"] for p in first["predictions"]] == [p["label"] for p in whole["predictions"]]
    for i, prediction in enumerate(whole["predictions"]):
        assert "".join(p["rationale"] for p in pieces if p["index"] == i).strip() == prediction["rationale"]
    assert len(pieces) > len(TEXTS)


def test_odd_texts_are_classified(ask: Ask) -> None:
    texts = ["\x00", "\u202e\u200b", "🎬" * 50, "<script>", "a" * 5000, "\U0010ffff"]
    answer = ask({"texts": texts})
    assert answer.status_code == 200
    assert len(answer.json()["predictions"]) == len(texts)


def test_a_student_without_rationales_says_so(ask: Ask, student_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(student_folder, folder)
    card = json.loads((folder / "cotd.json").read_text())
    (folder / "cotd.json").write_text(json.dumps({**card, "method": "distill", "writes_rationales": False}))
    response = ask({"texts": ["fine"], "rationale": True}, student=str(folder))
    assert response.status_code == 422
    assert error_of(response)["code"] == "no_rationales"


def test_a_full_queue_answers_503_and_when_to_come_back(with_endpoint: Any, settings: Settings) -> None:
    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        requests = [client.post("/v1/predict", json={"texts": ["fine"] * 4}) for _ in range(20)]
        answers = await asyncio.gather(*requests)
        statuses = [a.status_code for a in answers]
        assert set(statuses) == {200, 503}
        for answer in answers:
            if answer.status_code == 503:
                assert int(answer.headers["Retry-After"]) >= 1
                assert error_of(answer)["code"] == "queue_full"
        assert (await client.get("/readyz")).status_code == 200
        assert endpoint.labels.queued == 0

    with_endpoint(settings.model_copy(update={"max_texts": 4, "max_queued_texts": 8, "max_batch": 4}), use)


def test_readiness_is_of_a_queue_that_would_take_a_request(with_endpoint: Any, settings: Settings) -> None:
    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        endpoint.labels.queued = 5
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "queue_full"
        assert int(answer.headers["Retry-After"]) >= 1
        endpoint.labels.queued = 0

    with_endpoint(settings.model_copy(update={"max_texts": 4, "max_queued_texts": 8}), use)


def test_a_stream_of_server_sent_events(ask: Ask) -> None:
    body = {"texts": TEXTS, "rationale": True}
    lines = [json.loads(line) for line in ask({**body, "stream": True}).text.splitlines()]
    response = ask(body, {"Accept": "text/event-stream"})
    assert response.headers["Content-Type"].startswith("text/event-stream")
    events = [dict(part.split(": ", 1) for part in event.split("\n")) for event in response.text.split("\n\n")[:-1]]
    assert [event["event"] for event in events] == ["predictions"] + ["rationale"] * (len(lines) - 1)
    assert [json.loads(event["data"]) for event in events] == lines


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


def test_a_stream_that_fails_says_so_in_its_last_line(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream_rationale(student: Student, text: str, on_text: Callable[[str], None], choices: Any = None) -> None:
        on_text("The reviewer")
        raise RuntimeError("no memory")

    monkeypatch.setattr(Student, "stream_rationale", stream_rationale)
    response = ask({"texts": TEXTS, "rationale": True, "stream": True})
    predictions, piece, last = [json.loads(line) for line in response.text.splitlines()]
    assert "predictions" in predictions
    assert piece == {"index": 0, "rationale": "The reviewer"}
    assert last["error"]["code"] == "internal_error"
    assert last["error"]["request_id"] == response.headers["X-Request-ID"]


def test_the_model_is_described(ask: Ask) -> None:
    model = ask(path="/v1/model").json()
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


def test_the_dashboard_asks_for_metrics_that_there_are(ask: Ask) -> None:
    declared = set(re.findall(r"^# TYPE (cotd_\w+)", ask(path="/metrics").text, re.MULTILINE))
    exported = declared | {f"{name}_{part}" for name in declared for part in ("bucket", "count", "sum")}
    dashboard = json.loads((Path(serve.__file__).parent / "deploy" / "grafana.json").read_text())
    queried = {name for panel in dashboard["panels"] for t in panel["targets"] for name in re.findall(r"cotd_\w+", t["expr"])}
    assert len(queried) >= 8
    assert queried <= exported


def test_the_documentation_has_examples_and_errors(ask: Ask) -> None:
    assert "security" not in ask(path="/openapi.json").text
    document = ask(path="/openapi.json", token_sha256=token_sha256(TOKEN)).json()
    predict = document["paths"]["/v1/predict"]["post"]
    assert set(predict["responses"]) == {"200", "400", "401", "408", "413", "415", "422", "500", "503"}
    for status in ("401", "413", "422", "503"):
        assert predict["responses"][status]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorResponse")
    for name in ("PredictRequest", "PredictResponse", "ErrorResponse"):
        assert document["components"]["schemas"][name]["examples"]
    assert predict["security"] == [{"HTTPBearer": []}]
