"""Requests that are valid and invalid, and errors as the client reads them."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.client import parse_error
from serve.schemas import PredictRequest


def refusal(**body: object) -> str:
    with pytest.raises(ValidationError) as caught:
        PredictRequest.model_validate(body)
    return "; ".join(e["msg"] for e in caught.value.errors())


@given(st.lists(st.text(min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=5))
def test_texts_arrive_as_they_are(texts: list[str]) -> None:
    assert PredictRequest.model_validate({"texts": texts}).texts == texts
    assert PredictRequest.model_validate({"texts": texts[0]}).texts == [texts[0]]


def test_a_rationale_must_be_asked_for() -> None:
    assert PredictRequest(texts=["fine"]).rationale is False
    assert PredictRequest(texts=["fine"], rationale=True).rationale is True


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"texts": []}, "at least 1 item"),
        ({}, "Field required"),
        ({"texts": None}, "valid list"),
        ({"texts": ["fine", " \n\t"]}, "texts[1] is empty"),
        ({"texts": ""}, "texts[0] is empty"),
        ({"texts": [7]}, "valid string"),
        ({"texts": ["fine"], "rational": True}, "Extra inputs are not permitted"),
    ],
)
def test_what_is_refused_says_why(body: dict[str, object], message: str) -> None:
    assert message in refusal(**body)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(422, json={"error": {"code": "invalid_request", "message": "texts[0] is empty"}}), "texts[0] is empty"),
        (httpx.Response(502, text="<html>bad gateway</html>"), "<html>bad gateway</html>"),
        (httpx.Response(500, json=["odd"]), '["odd"]'),
    ],
)
def test_the_client_tells_why_it_was_refused(response: httpx.Response, message: str) -> None:
    assert parse_error(response)[1] == message
