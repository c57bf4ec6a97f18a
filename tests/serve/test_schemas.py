"""Requests in the wire format; what is refused is tested through the API."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve.schemas import PredictRequest


@given(st.lists(st.text(min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=5))
def test_texts_arrive_unchanged(texts: list[str]) -> None:
    assert PredictRequest.model_validate({"texts": texts}).texts == texts
    assert PredictRequest.model_validate({"texts": texts[0]}).texts == [texts[0]]


def test_rationales_and_streaming_are_off_by_default() -> None:
    request = PredictRequest(texts=["fine"])
    assert not request.rationale
    assert not request.stream
