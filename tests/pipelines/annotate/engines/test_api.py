"""Annotation through an OpenAI-compatible endpoint that misbehaves in every way that one does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

import pipelines.annotate.engines.api.endpoint
from cotd.cli.app import main
from cotd.errors import CotdError
from cotd.teachers.requests import Request
from cotd.teachers.teacher import load_teacher
from pipelines.annotate.engines.api.engine import check_endpoint
from pipelines.annotate.engines.api.responses import label_logprob, token_count
from pipelines.annotate.files import AnnotationFiles, read_annotations
from pipelines.annotate.run import annotate
from tests.pipelines.conftest import KEY, MakeStudy, Provider, answer_in_json, number_of


def test_an_endpoint_annotates(study: MakeStudy, provider: Provider) -> None:
    config = study()
    summary = annotate(config, yes=True)
    assert summary["annotations"] == {"rows": 48, "reviews": 24, "usable": 48, "quarantined": {}}
    assert summary["teacher"]["accuracy"] == 1.0
    assert len(provider[0].bodies) == summary["usage"]["requests"] == 12 + 24 + 24
    assert (summary["spent"]["prompt_tokens"], summary["spent"]["output_tokens"]) == (60 * 50, 60 * 10)
    body = provider[0].bodies[-1]
    assert (body["model"], body["temperature"], body["seed"]) == ("teacher-1", 0.0, 0)
    schema = body["response_format"]["json_schema"]
    assert schema["strict"]
    assert set(schema["schema"]["properties"]) <= {"rationale", "label"}
    assert not {"structured_outputs", "logprobs", "label_words"} & set(body)
    again = annotate(config)  # nothing to ask is no reason to ask anybody
    assert len(provider[0].bodies) == 60
    assert again["digest"] == summary["digest"]


def test_a_label_may_be_written_in_small_letters(study: MakeStudy, provider: Provider) -> None:
    """By servers that hold answers to JSON and not to its schema."""
    server = provider[0]
    server.write = lambda prompt: answer_in_json(prompt).replace("Positive", "positive").replace("Negative", " NEGATIVE.")
    summary = annotate(study("teacher.api.json_answers=object"), yes=True)
    assert (len(server.bodies), summary["annotations"]["usable"], summary["teacher"]["accuracy"]) == (60, 48, 1.0)


@pytest.mark.parametrize("listed", ["models/teacher-1", "owner/teacher-1", "teacher-1:latest"])
def test_a_model_may_be_listed_by_a_longer_name(study: MakeStudy, provider: Provider, listed: str) -> None:
    provider[0].models = ["another", listed]
    config = study()
    assert config.teacher.api is not None
    check_endpoint(config.teacher.model, config.teacher.api, None)


QUICK = ["teacher.api.timeout_seconds=2"]  # for what never answers; a busy machine may take a second over the rest
PASSING = [
    "429", "429_seconds", "429_date", "500", "hang", "truncated", "malformed", "no_choices", "odd", "not_gzip", "empty", "prose",
    "deep", "deep_text", "429_no_such_year",
]  # fmt: skip


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(study: MakeStudy, provider: Provider, fault: str) -> None:
    """Every fourth review fails at its first try; in the end nothing is missing and no row has another's answer."""
    server = provider[0]
    server.fault = lambda prompt, tries: fault if tries == 0 and int(number_of(prompt)) % 4 == 0 else None
    config = study(*QUICK) if fault == "hang" else study()
    summary = annotate(config, yes=True)
    assert summary["annotations"]["usable"] == 48
    assert summary["teacher"]["accuracy"] == summary["teacher"]["accuracy_on_train"] == 1.0
    failed = [prompt for prompt in server.tries if int(number_of(prompt)) % 4 == 0]
    assert len(failed) == 15
    # More than two where a connection broke as well, which happens on a busy machine.
    assert all(server.tries[prompt] >= 2 for prompt in failed)


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        ("refusal", "the teacher refused: I cannot help with that.", 1),
        ("filtered", "the endpoint's content filter refused", 1),
        ("length", "the response is cut off by the token limit before it has the form asked for", 1),
        ("thought_only", "the token limit was reached before anything was answered", 1),
        ("400", "HTTP 400: bad request, key Bearer [key]", 1),
        ("500", "HTTP 500: <html>out of order</html>", 3),
        ("half_pair", "HTTP 400: half \ufffd a pair", 1),
        ("hang", "no response within 2 s", 3),
        ("empty", "an empty response", 3),
        ("prose", "the response does not have the form asked for", 3),
    ],
)
def test_what_does_not_pass_is_quarantined(study: MakeStudy, provider: Provider, fault: str, reason: str, tries: int) -> None:
    server = provider[0]
    server.fault = lambda prompt, tries: fault if number_of(prompt) == "3" else None
    config = study("teacher.api.retries=2", *(QUICK if fault == "hang" else []))
    summary = annotate(config, yes=True)
    assert summary["annotations"]["quarantined"] == {reason: 2}
    assert summary["annotations"]["usable"] == 46
    assert {server.tries[p] for p in server.tries if number_of(p) == "3"} == {tries}

    refused = tries == 1
    asked = len(server.bodies)
    server.fault = lambda prompt, tries: None
    if refused:
        annotate(config, yes=True)
        assert len(server.bodies) == asked, "what was refused for good is not sent again by itself"
    summary = annotate(config, yes=True, retry_errors=True)
    assert len(server.bodies) == asked + 2
    assert summary["annotations"]["usable"] == 48


def test_retrying_errors_sends_nothing_else(study: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    with pytest.raises(CotdError, match="has no annotations yet"):
        annotate(study(), yes=True, retry_errors=True)
    server.fault = lambda prompt, tries: "refusal" if number_of(prompt) == "3" else None
    annotate(study("data.train_rows=20"), yes=True)
    asked = len(server.bodies)
    server.fault = lambda prompt, tries: None
    summary = annotate(study(), yes=True, retry_errors=True)
    assert {number_of(p) for p in server.prompts[asked:]} <= {"3"}
    assert summary["annotations"]["quarantined"] == {"not asked: --retry-errors sends quarantined rows only": 8}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "401",
            r"refuses the key \(HTTP 401: bad key Bearer \[key\]\)\. Check the key in the environment variable TEACHER_KEY",
        ),
        ("404", "has no model 'teacher-1'"),
        ("quota", "has no quota left"),
    ],
)
def test_what_no_request_can_pass_stops_the_run(study: MakeStudy, provider: Provider, fault: str, message: str) -> None:
    server = provider[0]
    server.fault = lambda prompt, tries: fault if len(server.bodies) > 30 else None
    config = study()
    with pytest.raises(CotdError, match=message):
        annotate(config, yes=True)
    assert read_annotations(config) is None
    assert len(server.bodies) < 50
    good = len(server.bodies)
    server.fault = lambda prompt, tries: None
    summary = annotate(config, yes=True)
    assert summary["usage"]["from_store"] == 30, "what came before is kept"
    assert len(server.bodies) == good + 30


def test_a_server_that_goes_away_does_not_quarantine_the_rest(study: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    server.fault = lambda prompt, tries: "500" if len(server.bodies) > 12 else None
    with pytest.raises(CotdError, match=r"the last 32 requests to http\S* all failed, the last one with: HTTP 500"):
        annotate(study("teacher.api.retries=0"), yes=True)


def test_a_token_limit_that_cuts_every_answer_ends_the_run(study: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    server.fault = lambda prompt, tries: "length"
    with pytest.raises(CotdError, match=r"the last 32 .* cut off by the token limit .* Raise teacher\.max_rationale_tokens"):
        annotate(study("teacher.api.concurrency=64"), yes=True)
    assert len(server.bodies) <= 48
    server.fault = lambda prompt, tries: None
    summary = annotate(study("teacher.max_rationale_tokens=80"), yes=True)
    assert (summary["annotations"]["usable"], summary["usage"]["from_store"]) == (48, 0)


def test_a_setting_that_the_server_refuses_ends_the_run_and_leaves_no_trace(study: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    server.fault = lambda prompt, tries: "400"
    with pytest.raises(CotdError, match=r"refuses all requests of this kind.*Check .*max_tokens_field"):
        annotate(study("teacher.api.concurrency=64"), yes=True)
    assert len(server.bodies) <= 8
    server.fault = lambda prompt, tries: None
    assert annotate(study(), yes=True)["annotations"]["usable"] == 48, "nothing is taken for refused"


def test_a_teacher_that_refused_everything_is_an_error_again(study: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    server.fault = lambda prompt, tries: "refusal"
    with pytest.raises(CotdError, match="the teacher failed on all 60 requests for chains of thought: the teacher refused"):
        annotate(study(), yes=True)
    with pytest.raises(CotdError, match=r"failed on all 60 requests .*, and would again: the teacher refused.*--retry-errors"):
        annotate(study(), yes=True)
    assert len(server.bodies) == 60


def test_what_a_request_is_sent_with_is_part_of_its_key(study: MakeStudy) -> None:
    def revision(*overrides: str) -> str:
        return load_teacher(study(*overrides).teacher).revision

    assert revision().endswith("/v1 chat")
    settings = ["max_tokens_field=max_completion_tokens", "json_answers=object", "extra_body={top_k: 5}"]
    assert len({revision(), *(revision(f"teacher.api.{s}") for s in settings)}) == 4


def test_odd_counts_of_tokens_are_not_believed(study: MakeStudy, provider: Provider) -> None:
    provider[0].fault = lambda prompt, tries: "odd_usage"
    spent = annotate(study(), yes=True)["spent"]
    assert 60 * 100 < spent["prompt_tokens"] < 60 * 400
    assert 60 * 10 < spent["output_tokens"] < 60 * 40
    assert [token_count(v, 7) for v in (3, 3.0, 0, "3", float("nan"), 10**12, -1, True, None)] == [3, 3] + [7] * 7


def test_an_answer_that_cannot_be_read_costs_no_other(study: MakeStudy, provider: Provider, monkeypatch: Any) -> None:
    """Whatever else may go wrong with one answer: those beside it are kept."""
    real = pipelines.annotate.engines.api.endpoint.read_completion

    def breaks(request: Request, *rest: Any) -> Any:
        if number_of(request.prompt) == "3":
            raise MemoryError(f"key {KEY}")
        return real(request, *rest)

    monkeypatch.setattr("pipelines.annotate.engines.api.endpoint.read_completion", breaks)
    quarantined = annotate(study(), yes=True)["annotations"]["quarantined"]
    assert quarantined == {"its response could not be read: MemoryError: key [key]": 2}


@pytest.mark.parametrize("key", ["sk-1\nsk-2", "sk-1 sk-2", "sk-é", "sk-\x00"])
def test_what_is_no_key_is_not_shown(study: MakeStudy, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("os.environ", {**os.environ, "TEACHER_KEY": key})
    with pytest.raises(CotdError, match="TEACHER_KEY does not hold a key: it has a line break, a space") as caught:
        annotate(study(), yes=True)
    assert "sk-" not in str(caught.value)


def test_the_key_is_nowhere(
    study: MakeStudy,
    provider: Provider,
    make_store: Callable[[Path], str],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither printed, nor in a file, nor in MLflow, after a run by the command line."""
    server = provider[0]
    server.fault = lambda prompt, tries: "400" if number_of(prompt) == "3" else None
    study()  # writes it
    uri = make_store(tmp_path / "mlflow.db")
    command = ["cotd", "annotate", str(tmp_path / "study.yaml"), "--yes", f"tracking.uri={uri}"]
    monkeypatch.setattr("sys.argv", command)
    with contextlib.suppress(SystemExit):
        main()
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert runs
    assert KEY not in json.dumps([r.to_dictionary() for r in runs])
    assert {h["authorization"] for h in server.headers} == {f"Bearer {KEY}"}
    printed = capfd.readouterr()
    assert KEY not in printed.out + printed.err
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert len(files) > 5
    for file in files:
        assert KEY.encode() not in file.read_bytes(), file


def test_a_stopped_run_keeps_what_is_in_flight(study: MakeStudy, provider: Provider, hear_interrupts: None) -> None:
    server = provider[0]

    def interrupt(prompt: str, tries: int) -> None:
        if len(server.bodies) == 25:
            os.kill(os.getpid(), signal.SIGINT)

    server.fault = interrupt
    config = study()
    with pytest.raises(KeyboardInterrupt):
        annotate(config, yes=True)
    assert read_annotations(config) is None
    server.fault = lambda prompt, tries: None
    summary = annotate(config, yes=True)
    assert summary["usage"]["from_store"] >= 25
    assert len(server.bodies) == 60, "nothing that was paid for is asked again"
    assert set(server.tries.values()) == {1}


# --- label scores ---------------------------------------------------------------------------------------------------


def test_label_scores_from_the_likeliest_tokens(study: MakeStudy, provider: Provider) -> None:
    provider[0].write = lambda prompt: " The reviewer says what the film is like."
    config = study(
        "teacher.strategy=score_then_explain", "teacher.api.endpoint=completions", "teacher.calibration.rows=24"
    )  # fmt: skip
    summary = annotate(config, yes=True)
    assert summary["teacher"]["accuracy"] == 1.0
    assert summary["annotations"]["usable"] == 48
    assert "24 validation reviews" in summary["calibration"]["used"]
    scoring = [b for b in provider[0].bodies if b["max_tokens"] == 1]
    assert {b["logprobs"] for b in scoring} == {5}


def test_a_server_without_log_probabilities_is_refused_before_anything_starts(study: MakeStudy, provider: Provider) -> None:
    provider[0].logprobs = False
    config = study("teacher.strategy=score_then_explain", "teacher.api.endpoint=completions")
    with pytest.raises(CotdError, match=r"gives no log-probabilities.*Set strategy: chain_of_thought"):
        annotate(config, yes=True)
    assert len(provider[0].bodies) == 1
    assert not config.directory.exists()


def test_label_words_are_found_by_their_beginnings() -> None:
    given = {" Pos": -1.0, "Positive": -2.0, " Negative": -3.0, " P": -4.0, " ": -0.1, " Neutral": -0.2}
    assert label_logprob(" Positive", given, [" Negative"]) == pytest.approx(-0.6519, abs=1e-3)
    assert label_logprob(" Negative", given, [" Positive"]) == -3.0
    assert label_logprob(" Positive", {" P": -1.0}, [" Pessimistic"]) is None


# --- before anything is asked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.api.key_env=NO_SUCH_KEY"], "the environment variable NO_SUCH_KEY is not set"),
        (["teacher.model=teacher-2"], "has no model 'teacher-2' .*Did you mean 'teacher-1'"),
        (["teacher.api.base_url=http://127.0.0.1:9/v1"], "no response from http://127.0.0.1:9/v1"),
        (["teacher.strategy=score_then_explain"], "score_then_explain needs the log-probabilities"),
        ([f"teacher.api.key_env={KEY}"], "names an environment variable, in capitals, such as OPENAI_API_KEY"),
        (["teacher.api.base_url=http://me:pass@host/v1"], "holds credentials"),
        (["teacher.budget.max_cost=1"], "max_cost needs input_price and output_price"),
        (["teacher.filters=[agrees_with_golds]"], "unknown filter 'agrees_with_golds'.*Did you mean 'agrees_with_gold'"),
        (["teacher.filters=[{length: {max_word: 3}}]"], "length has no setting 'max_word'.*Did you mean 'max_words'"),
        (["teacher.api.timeout=3"], "unknown key 'teacher.api.timeout'. Did you mean 'timeout_seconds'"),
    ],
)
def test_what_cannot_work_is_said_first(study: MakeStudy, provider: Provider, overrides: list[str], message: str) -> None:
    with pytest.raises(CotdError, match=message) as caught:
        annotate(study(*overrides), yes=True)
    assert KEY not in str(caught.value)
    assert "pass@" not in str(caught.value)
    assert not provider[0].bodies


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
