"""Annotation through an OpenAI-compatible endpoint that misbehaves in every way that one does."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

import pipelines.annotate.engines.api.endpoint
from cotd.errors import CotdError
from cotd.teachers.requests import Request
from pipelines.annotate.files import read_annotations
from pipelines.annotate.run import annotate
from tests.pipelines.annotate.fault_server import KEY, MakeStudy, Provider, number_of


def test_an_endpoint_annotates(study: MakeStudy, provider: Provider) -> None:
    config = study()
    summary = annotate(config, yes=True)
    assert summary["annotations"] == {"rows": 48, "examples": 24, "usable": 48, "quarantined": {}}
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


QUICK = ["teacher.api.timeout_seconds=2"]  # for what never responds; a busy machine may take a second over the rest
PASSING = [
    "429", "429_seconds", "429_date", "500", "hang", "truncated", "malformed", "no_choices", "odd", "not_gzip", "empty", "prose",
    "deep", "deep_text", "429_no_such_year",
]  # fmt: skip


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.integration
def test_what_passes_is_tried_again(study: MakeStudy, provider: Provider, fault: str) -> None:
    """Every fourth example fails at its first try; in the end nothing is missing and no row has another's completion."""
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
        ("thought_only", "the token limit was reached before anything was written", 1),
        ("400", "HTTP 400: bad request, key Bearer [key]", 1),
        ("500", "HTTP 500: <html>out of order</html>", 3),
        ("half_pair", "HTTP 400: half \ufffd a pair", 1),
        pytest.param("hang", "no response within 2 s", 3, marks=pytest.mark.integration),
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
        ("quota", "has no credit left"),
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


def test_a_token_limit_that_cuts_every_completion_ends_the_run(study: MakeStudy, provider: Provider) -> None:
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
    with pytest.raises(
        CotdError, match=r"refuses all requests of this kind.*Check .*max_tokens_field.*null leaves a parameter out"
    ):
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


def test_an_unreadable_response_does_not_affect_other_rows(study: MakeStudy, provider: Provider, monkeypatch: Any) -> None:
    """Whatever else may go wrong with one completion: those beside it are kept."""
    real = pipelines.annotate.engines.api.endpoint.read_completion

    def breaks(request: Request, *rest: Any) -> Any:
        if number_of(request.prompt) == "3":
            raise MemoryError(f"key {KEY}")
        return real(request, *rest)

    monkeypatch.setattr("pipelines.annotate.engines.api.endpoint.read_completion", breaks)
    quarantined = annotate(study(), yes=True)["annotations"]["quarantined"]
    assert quarantined == {"its response could not be read: MemoryError: key [key]": 2}


@pytest.mark.parametrize(("number", "stopped"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_stopped_run_keeps_what_is_in_flight(
    study: MakeStudy, provider: Provider, hear_interrupts: None, number: signal.Signals, stopped: type[BaseException]
) -> None:
    server = provider[0]
    before = signal.getsignal(signal.SIGTERM)

    def interrupt(prompt: str, tries: int) -> None:
        if len(server.bodies) == 25:
            os.kill(os.getpid(), number)

    server.fault = interrupt
    config = study()
    with pytest.raises(stopped) as caught:
        annotate(config, yes=True)
    assert stopped is KeyboardInterrupt or caught.value.code == 143  # type: ignore[attr-defined]
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_annotations(config) is None
    server.fault = lambda prompt, tries: None
    summary = annotate(config, yes=True)
    assert summary["usage"]["from_store"] >= 25
    assert len(server.bodies) == 60, "nothing that was paid for is asked again"
    assert set(server.tries.values()) == {1}
