"""Errors have one shape, whatever the client sends, and cost no more than they should."""

from __future__ import annotations

import tracemalloc
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from serve.endpoint.endpoint import Endpoint
from serve.schemas import PredictRequest
from serve.settings import Settings
from tests.serve.http.conftest import Ask, error_of

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
            error_of(answer)
        assert (await client.post("/v1/predict", json={"texts": "fine"})).status_code == 200

    with_endpoint(settings, use)


@pytest.mark.parametrize(
    "body", [{"texts": [1] * 1_000_000}, {str(key): 1 for key in range(200_000)}, {"texts": [[]] * 100_000, "x": {}}]
)
def test_a_body_of_many_errors_gets_a_short_response(ask: Ask, body: Any) -> None:
    response = ask(body)
    assert response.status_code == 422
    assert len(error_of(response)["details"]) <= 2
    assert len(response.content) < 1000
    tracemalloc.start()
    with pytest.raises(ValidationError):
        PredictRequest.model_validate(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"texts": ["fine"] * 5}, 413, "too_many_texts", "5 texts; the limit is 4 a request. Send several requests."),
        ({"texts": ["fine", "x" * 101]}, 413, "text_too_long", "texts[1] has 101 characters; the limit is 100."),
        ({"texts": ["x" * 1001]}, 413, "body_too_large", "the body is larger than 1,000 bytes"),
        ({"texts": []}, 422, "invalid_request", "body.texts: List should have at least 1 item"),
        ({"texts": ["fine", " \n\t"]}, 422, "invalid_request", "texts[1] is empty"),
        ({"texts": ""}, 422, "invalid_request", "texts[0] is empty"),
        ({"texts": None}, 422, "invalid_request", "body.texts: Input should be a valid list"),
        ({}, 422, "invalid_request", "body.texts: Field required"),
        ({"texts": ["fine"], "rational": True}, 422, "invalid_request", "body.rational: Extra inputs are not permitted"),
        ({"texts": [7]}, 422, "invalid_request", "body.texts.0: Input should be a valid string"),
        ([], 422, "invalid_request", "body: Input should be"),
    ],
)  # fmt: skip
def test_refusals_say_why(ask: Ask, body: Any, status: int, code: str, message: str) -> None:
    response = ask(body, max_texts=4, max_characters=100, max_body_bytes=1000)
    assert response.status_code == status
    error = error_of(response)
    assert error["code"] == code
    assert message in error["message"]
