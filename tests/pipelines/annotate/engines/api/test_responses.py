"""What is read from an endpoint's responses, and what is asked of it."""

from __future__ import annotations

import json

import pytest

from cotd.teachers.teacher import load_teacher
from pipelines.annotate.engines.api.responses import label_logprob, token_count
from pipelines.annotate.files import AnnotationFiles
from pipelines.annotate.run import annotate
from tests.pipelines.annotate.fault_server import MakeStudy, Provider, answer_in_json


def test_a_label_may_be_written_in_small_letters(study: MakeStudy, provider: Provider) -> None:
    """By servers that hold answers to JSON and not to its schema."""
    server = provider[0]
    server.write = lambda prompt: answer_in_json(prompt).replace("Positive", "positive").replace("Negative", " NEGATIVE.")
    summary = annotate(study("teacher.api.json_completions=object"), yes=True)
    assert (len(server.bodies), summary["annotations"]["usable"], summary["teacher"]["accuracy"]) == (60, 48, 1.0)


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
