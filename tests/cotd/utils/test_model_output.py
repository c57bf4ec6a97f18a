"""What language models write around what they were asked for."""

from __future__ import annotations

import json

import pytest

from cotd.utils.model_output import json_objects, without_thoughts


@pytest.mark.parametrize(
    "text",
    [
        "<think>{1}</think> said", "<THINK>\n</THINK>said", "no beginning </think>said",
        "<thinking>a</thinking>b<thought>c</thought>said",
        "[THINK]a[/THINK]said", "said<think>which does not end",
    ],
)  # fmt: skip
def test_thoughts_are_left_out(text: str) -> None:
    assert without_thoughts(text).strip() == "said"


def test_a_text_without_thoughts_stays() -> None:
    assert without_thoughts("I think < 3 </b> <thin> [reason]ably]") == "I think < 3 </b> <thin> [reason]ably]"


def test_objects_are_found_among_words_and_in_one_another() -> None:
    assert json_objects('{no} {"A": 1} or {"b": {"c": [{"d": "e\nf"}]}}') == [
        {"a": 1}, {"b": {"c": [{"d": "e\nf"}]}}, {"c": [{"d": "e\nf"}]}, {"d": "e\nf"}
    ]  # fmt: skip
    assert json_objects("{'a': 'it\\'s', }") == [{"a": "it's"}]
    assert json_objects(json.dumps('{"a": ["one"], "b": ["two", "three"]}')) == [{"a": "one", "b": ["two", "three"]}]


@pytest.mark.parametrize("text", ["{" * 100_000, '{"a": ' * 50_000, '{"a": ' + "[" * 100_000, "{'" * 10_000 + "}"])
def test_nothing_takes_long(text: str) -> None:
    assert json_objects(text) == []
