"""What is read from an endpoint's responses, and what is asked of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from cotd.errors import CotdError
from cotd.teachers.teacher import load_teacher
from pipelines.annotate.engines.api.responses import join_events, label_logprob, token_count
from pipelines.annotate.files import AnnotationFiles
from pipelines.annotate.run import annotate
from pipelines.annotate.summary import summary_lines
from tests.pipelines.annotate.fault_server import MakeStudy, Provider, answer_in_json, number_of


def test_a_label_may_be_written_in_small_letters(study: MakeStudy, provider: Provider) -> None:
    """By servers that hold answers to JSON and not to its schema."""
    server = provider[0]
    server.write = lambda prompt: answer_in_json(prompt).replace("Positive", "positive").replace("Negative", " NEGATIVE.")
    summary = annotate(study("teacher.api.json_completions=object"), yes=True)
    assert (len(server.bodies), summary["annotations"]["usable"], summary["teacher"]["accuracy"]) == (60, 48, 1.0)


THOUGHT = 'Perhaps {"rationale": "It is bad.", "label": "Negative"}? No.'
WRAPS: dict[str, Callable[[str], dict[str, Any]]] = {
    "fences": lambda text: {"content": f"Here you are:\n```json\n{text}\n```\nAnything else?"},
    "thought": lambda text: {"content": f"<think>{THOUGHT}</think>\n{text}"},
    "thought without a beginning": lambda text: {"content": f"{THOUGHT}\n</think>\n\n{text}"},
    "draft": lambda text: {"content": f"{THOUGHT} Rather: {text}"},
    "bold": lambda text: {"content": re.sub(r'"(Positive|Negative)"', r'"**\1**."', text)},
    "label with its name": lambda text: {"content": re.sub(r'"(Positive|Negative)"', r'"Label: \1 (0.9)"', text)},
    "inner object": lambda text: {"content": f'{{"result": [{text}]}}'},
    "keys in capitals": lambda text: {"content": text.replace('"label"', '"Label"').replace('"rationale"', '"Rationale"')},
    "parts": lambda text: {"content": [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": text}]},
    "strings": lambda text: {"content": [text[:9], text[9:]]},
    "object": lambda text: {"content": json.loads(text)},
    "taken for a thought": lambda text: {"content": None, "reasoning_content": text},
    "beside a thought": lambda text: {"content": text, "reasoning_content": THOUGHT, "reasoning": THOUGHT},
    "list of one label": lambda text: {"content": re.sub(r'"(Positive|Negative)"', r'["\1"]', text)},
    "JSON in a JSON string": lambda text: {"content": json.dumps(text)},
    "function": lambda text: {"content": None, "function_call": {"name": "completion", "arguments": text}},
    "tool": lambda text: {"content": None, "tool_calls": [{"function": {"name": "completion", "arguments": text}}]},
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_completion_is_found_in_whatever_form_it_comes(study: MakeStudy, provider: Provider, wrap: str) -> None:
    server = provider[0]
    server.wrap = WRAPS[wrap]
    summary = annotate(study(), yes=True)
    assert (len(server.bodies), summary["annotations"]["usable"], summary["teacher"]["accuracy"]) == (60, 48, 1.0)
    assert summary["teacher"]["accuracy_on_train"] == 1.0


def test_a_stream_that_nobody_asked_for_is_one_response() -> None:
    def chunk(**delta: str) -> dict[str, Any]:
        return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}

    events: list[dict[str, Any]] = [chunk(role="assistant"), chunk(content='{"lab'), chunk(content='el": 1}')]
    end = [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": {"completion_tokens": 7}}]
    lines = [": wait", *(f"data: {json.dumps(event)}" for event in [*events, *end]), "data: [DONE]"]
    response = join_events("\n\n".join(lines))
    (choice,) = response["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ('{"label": 1}', "stop")
    assert response["usage"] == {"completion_tokens": 7}
    error = {"error": {"message": "lost"}}
    assert join_events(f"data: {json.dumps(events[1])}\n\ndata: {json.dumps(error)}") == error


def test_a_refusal_among_the_parts_of_a_message_is_one(study: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    server.wrap = lambda text: {"content": [{"type": "refusal", "refusal": "No."}] if "number 3." in text else text}
    server.write = lambda prompt: answer_in_json(prompt).replace("film", f"film number {number_of(prompt)}.")
    assert annotate(study(), yes=True)["annotations"]["quarantined"] == {"the teacher refused: No.": 2}


@pytest.mark.parametrize("mark", ["<think>", "[THINK]"])
def test_a_thought_that_does_not_end_is_no_completion(study: MakeStudy, provider: Provider, mark: str) -> None:
    server = provider[0]
    server.wrap = lambda text: {"content": f"{mark}{THOUGHT}" if "number 3." in text else text}
    server.write = lambda prompt: answer_in_json(prompt).replace("film", f"film number {number_of(prompt)}.")
    assert annotate(study("teacher.api.retries=0"), yes=True)["annotations"]["quarantined"] == {"an empty response": 2}


def test_labels_before_their_rationales_are_counted(study: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    server.wrap = lambda text: {"content": json.dumps(json.loads(text), sort_keys=True)}
    summary = annotate(study(), yes=True)
    assert summary["annotations"]["usable"] == 48
    assert summary["warnings"][-1].startswith("36 completions have the label before the rationale")
    assert any(
        line.startswith("warning: 36 completions") for line in summary_lines(summary, AnnotationFiles.of(study()).annotations)
    )


def test_a_vllm_that_is_too_old_for_patterns_is_recognised(study: MakeStudy, provider: Provider) -> None:
    provider[0].write = lambda prompt: "It praises the film, so it is positive."
    with pytest.raises(
        CotdError, match=r"this version of vLLM is too old for structured_outputs\. .*teacher\.api\.server: openai"
    ):
        annotate(study("teacher.api.server=vllm"), yes=True)
    assert len(provider[0].bodies) <= 4


def test_odd_counts_of_tokens_are_not_believed(study: MakeStudy, provider: Provider) -> None:
    provider[0].fault = lambda prompt, tries: "odd_usage"
    spent = annotate(study(), yes=True)["spent"]
    assert 60 * 100 < spent["prompt_tokens"] < 60 * 400
    assert 60 * 10 < spent["output_tokens"] < 60 * 40
    assert [token_count(v, 7) for v in (3, 3.0, 0, "3", float("nan"), 10**12, -1, True, None)] == [3, 3] + [7] * 7


def test_label_scores_from_the_likeliest_tokens(study: MakeStudy, provider: Provider) -> None:
    provider[0].write = lambda prompt: " The reviewer says what the film is like."
    config = study(
        "teacher.strategy=score_then_explain", "teacher.api.endpoint=completions", "teacher.calibration.rows=24"
    )  # fmt: skip
    summary = annotate(config, yes=True)
    assert summary["teacher"]["accuracy"] == 1.0
    assert summary["annotations"]["usable"] == 48
    assert "24 validation examples" in summary["calibration"]["used"]
    scoring = [b for b in provider[0].bodies if b["max_tokens"] == 1]
    assert {b["logprobs"] for b in scoring} == {5}


def test_label_words_are_found_by_their_beginnings() -> None:
    given = {" Pos": -1.0, "Positive": -2.0, " Negative": -3.0, " P": -4.0, " ": -0.1, " Neutral": -0.2}
    assert label_logprob(" Positive", given, [" Negative"]) == pytest.approx(-0.6519, abs=1e-3)
    assert label_logprob(" Negative", given, [" Positive"]) == -3.0
    assert label_logprob(" Positive", {" P": -1.0}, [" Pessimistic"]) is None


def test_vllm_is_asked_in_its_own_terms(study: MakeStudy, provider: Provider) -> None:
    """Answers held to a pattern; `extra_body` adds parameters and takes some out."""
    provider[0].write = lambda prompt: (
        " The reviewer says what it is.\nSentiment: Positive" if prompt.endswith("Rationale:") else " The reviewer says so."
    )
    summary = annotate(study("teacher.api.server=vllm", "teacher.api.extra_body={seed: null, top_k: 5}"), yes=True)
    assert summary["annotations"]["usable"] == 48
    for body in provider[0].bodies:
        assert "regex" in body["structured_outputs"]
        assert "seed" not in body
        assert body["top_k"] == 5
        assert "response_format" not in body
    assert json.loads(AnnotationFiles.of(study()).summary.read_text())["teacher"]["accuracy"] == 0.5


def test_what_a_request_is_sent_with_is_part_of_its_key(study: MakeStudy) -> None:
    def revision(*overrides: str) -> str:
        return load_teacher(study(*overrides).teacher).revision

    assert "/v1 chat" in revision()
    settings = ["max_tokens_field=max_completion_tokens", "json_completions=object", "extra_body={top_k: 5}"]
    assert len({revision(), *(revision(f"teacher.api.{s}") for s in settings)}) == 4
