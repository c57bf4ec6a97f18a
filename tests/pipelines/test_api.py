"""Annotation through an OpenAI-compatible endpoint that misbehaves in every way that one does."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelines.api_client
from cotd.cli import main
from cotd.completions import Request
from cotd.config import StudyConfig, load_config
from cotd.errors import CotdError
from pipelines.annotate import AnnotationFiles, annotate, load_teacher, read_annotations
from pipelines.api import check_endpoint
from pipelines.api_answers import label_logprob, token_count
from pipelines.rate_limit import RateLimit, retry_after
from tests.pipelines.conftest import answer_in_json

KEY = "sk-secret-0123456789"
Provider = tuple[Any, str]
MakeStudy = Callable[..., StudyConfig]


@pytest.fixture
def study(write_study: Callable[..., Path], provider: Provider, monkeypatch: pytest.MonkeyPatch) -> MakeStudy:
    """A study of 60 reviews whose teacher is the provider: 12 test, 24 train, each of these also given gold."""
    monkeypatch.setenv("TEACHER_KEY", KEY)

    def make(*overrides: str, rows: pd.DataFrame | None = None) -> StudyConfig:
        api = {
            "base_url": provider[1],
            "key_env": "TEACHER_KEY",
            "concurrency": 8,
            "backoff_seconds": 0.01,
            "timeout_seconds": 0.5,
        }
        teacher = {"model": "teacher-1", "strategy": "chain_of_thought", "api": api}
        path = write_study(teacher=teacher) if rows is None else write_study(rows, teacher=teacher)
        return load_config(path, list(overrides))

    return make


def table(config: StudyConfig) -> pd.DataFrame:
    found = read_annotations(config)
    assert found is not None
    return found[0]


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


def number_of(prompt: str) -> str:
    return prompt.rpartition("number ")[2].partition(".")[0]


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        ("refusal", "the teacher refused: I cannot help with that.", 1),
        ("filtered", "the endpoint's content filter refused", 1),
        ("length", "the answer is cut off by the token limit before it has the form asked for", 1),
        ("thought_only", "the token limit was reached before anything was answered", 1),
        ("400", "HTTP 400: bad request, key Bearer [key]", 1),
        ("500", "HTTP 500: <html>out of order</html>", 3),
        ("half_pair", "HTTP 400: half \ufffd a pair", 1),
        ("hang", "no answer within 2 s", 3),
        ("empty", "an empty answer", 3),
        ("prose", "the answer does not have the form asked for", 3),
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
    real = pipelines.api_client.read_answer

    def breaks(request: Request, *rest: Any) -> Any:
        if number_of(request.prompt) == "3":
            raise MemoryError(f"key {KEY}")
        return real(request, *rest)

    monkeypatch.setattr("pipelines.api_client.read_answer", breaks)
    quarantined = annotate(study(), yes=True)["annotations"]["quarantined"]
    assert quarantined == {"its answer could not be read: MemoryError: key [key]": 2}


@pytest.mark.parametrize("key", ["sk-1\nsk-2", "sk-1 sk-2", "sk-é", "sk-\x00"])
def test_what_is_no_key_is_not_shown(study: MakeStudy, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("os.environ", {**os.environ, "TEACHER_KEY": key})
    with pytest.raises(CotdError, match="TEACHER_KEY does not hold a key: it has a line break, a space") as caught:
        annotate(study(), yes=True)
    assert "sk-" not in str(caught.value)


def test_the_key_is_nowhere(
    study: MakeStudy, provider: Provider, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither printed, nor in a file, nor in MLflow, after a run by the command line."""
    server = provider[0]
    server.fault = lambda prompt, tries: "400" if number_of(prompt) == "3" else None
    study()  # writes it
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
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


# --- rate limits ----------------------------------------------------------------------------------------------------


def test_a_rate_limit_costs_no_row(study: MakeStudy, provider: Provider) -> None:
    """The server takes ten requests each half second and asks others to wait; no row is given up, whatever `retries`."""
    server, lock = provider[0], threading.Lock()
    level, at = 10.0, time.monotonic()

    def bucket(prompt: str, tries: int) -> str | None:
        nonlocal level, at
        with lock:
            level, at = min(10.0, level + 20 * (time.monotonic() - at)), time.monotonic()
            if level < 1:
                return "429_one_second"
            level -= 1
            return None

    server.fault = bucket
    summary = annotate(study("teacher.api.concurrency=32", "teacher.api.retries=0", "teacher.api.timeout_seconds=10"), yes=True)
    assert summary["annotations"]["usable"] == 48
    assert len(server.bodies) > 60
    assert len(server.bodies) < 400, "who waits does not ask over and over"


def test_a_retry_after_is_waited_for_by_every_request(study: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    first = True

    def once(prompt: str, tries: int) -> str | None:
        nonlocal first
        limited, first = first and len(server.bodies) > 10, first and len(server.bodies) <= 10
        return "429_one_second" if limited else None

    server.fault = once
    annotate(study("teacher.api.concurrency=2"), yes=True)
    assert len(server.bodies) == 61
    pauses = [after - before for before, after in itertools.pairwise(server.arrivals[9:15])]
    assert max(pauses) >= 0.9


def test_a_rate_limit_of_a_day_ends_the_run(study: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    server.fault = lambda prompt, tries: "429_tomorrow" if len(server.bodies) > 20 else None
    with pytest.raises(CotdError, match=r"asks to wait 86,400 s \(Retry-After; HTTP 429: a day's worth is used up\)"):
        annotate(study(), yes=True)
    server.fault = lambda prompt, tries: None
    assert annotate(study(), yes=True)["usage"]["from_store"] == 20


def test_tokens_a_minute_are_kept_to(study: MakeStudy, provider: Provider) -> None:
    """A burst, then a steady pace: of 60 requests with 60 tokens each, what is over a burst's worth waits."""
    started = time.monotonic()
    annotate(study("teacher.api.tokens_per_minute=30000", "teacher.max_rationale_tokens=20"), yes=True)
    seconds = time.monotonic() - started
    assert seconds >= 60 * 60 / (30_000 / 60) - 5, "no more than five seconds' worth at once"
    assert seconds < 30


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
        (["teacher.api.base_url=http://127.0.0.1:9/v1"], "no answer from http://127.0.0.1:9/v1"),
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


PRICES = ["teacher.budget.input_price=10", "teacher.budget.output_price=100"]


def test_nobody_to_agree_to_the_price(study: MakeStudy, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    config = study(*PRICES)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    with pytest.raises(CotdError, match=r"60 requests to make \(0 answers are in the store\).*run again with --yes"):
        annotate(config)
    assert not provider[0].bodies
    assert not config.directory.exists()


@pytest.mark.parametrize(("answer", "agreed"), [("y", True), ("", False)])
def test_the_price_is_asked_for_at_a_terminal(
    study: MakeStudy, provider: Provider, monkeypatch: pytest.MonkeyPatch, answer: str, agreed: bool
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    if agreed:
        assert annotate(study(*PRICES))["spent"]["cost"] == pytest.approx((60 * 50 * 10 + 60 * 10 * 100) / 1e6)
    else:
        with pytest.raises(CotdError, match="not started"):
            annotate(study(*PRICES))
    assert bool(provider[0].bodies) == agreed


@pytest.mark.parametrize("limit", ["max_cost=0.045", "max_tokens=2000"])
def test_a_budget_stops_the_run_and_keeps_what_is_done(study: MakeStudy, provider: Provider, limit: str) -> None:
    config = study(*PRICES, f"teacher.budget.{limit}")
    summary = annotate(config, yes=True)
    asked = len(provider[0].bodies)
    assert 12 < asked < 60
    spent = summary["spent"]
    assert spent["limit_reached"].startswith(limit.partition("=")[0])
    if limit.startswith("max_cost"):
        assert 0.03 < spent["cost"] <= 0.045
    else:
        assert 1500 < spent["prompt_tokens"] + spent["output_tokens"] <= 2000
    assert summary["teacher"]["n"] == 12
    (reason, count), = summary["annotations"]["quarantined"].items()  # fmt: skip
    assert reason.startswith(f"not asked: teacher.budget.{limit.partition('=')[0]}")
    assert count == 60 - asked
    whole = annotate(study(), yes=True)
    assert whole["annotations"]["usable"] == 48
    assert len(provider[0].bodies) == 60


@pytest.mark.parametrize("fault", ["prose", "malformed", "hang"])
def test_a_budget_holds_where_answers_are_paid_and_useless(study: MakeStudy, provider: Provider, fault: str) -> None:
    """Every second training review's answers are no use; what the server has written stays within the limit."""
    server = provider[0]
    server.fault = lambda prompt, tries: fault if int(number_of(prompt)) % 2 and int(number_of(prompt)) < 24 else None
    quick = ["teacher.api.timeout_seconds=0.7"] if fault == "hang" else []
    summary = annotate(study("teacher.budget.max_tokens=4500", *quick), yes=True)
    spent = summary["spent"]["prompt_tokens"] + summary["spent"]["output_tokens"]
    assert len(server.bodies) * 60 <= spent <= 4500
    if fault != "hang":  # whose tokens count at once as the most that they may be
        assert max(server.tries.values()) > 1
    if fault == "prose":  # the server says how much each took
        assert spent == len(server.bodies) * 60


def test_a_budget_too_small_for_the_test_reviews(study: MakeStudy, provider: Provider) -> None:
    with pytest.raises(CotdError, match=r"teacher\.budget\.max_tokens 20 was reached before the teacher was measured"):
        annotate(study("teacher.budget.max_tokens=20"), yes=True)
    assert not provider[0].bodies


# --- parts ----------------------------------------------------------------------------------------------------------


def test_a_rate_limit_spreads_requests() -> None:
    now = 0.0
    limit = RateLimit(120, clock=lambda: now)  # two a second, ten at once
    for _ in range(10):
        assert limit.wait(1) == 0.0
        limit.take(1)
    assert limit.wait(1) == pytest.approx(0.5)
    now = 0.5
    assert limit.wait(1) == 0.0
    booking = limit.take(1)
    assert limit.wait(1) == pytest.approx(0.5)
    limit.settle(booking, 0)  # it was not used after all
    assert limit.wait(1) == 0.0
    now = 1000.0
    assert limit.wait(10) == 0.0
    assert limit.wait(1000) == 0.0, "more than a minute's worth goes when the minute is empty"
    limit.take(1000)
    assert limit.wait(1) == pytest.approx(991 / 2)
    assert RateLimit(None).wait(10**9) == 0.0


@settings(max_examples=15)
@given(st.floats(1, 600), st.lists(st.floats(0.1, 40), min_size=1, max_size=8))
def test_a_rate_limit_holds_in_any_minute(per_minute: float, amounts: list[float]) -> None:
    """Somebody takes whatever is allowed, for ten minutes, in pieces no larger than a minute's worth."""
    now = 0.0
    limit = RateLimit(per_minute, clock=lambda: now)
    taken: list[tuple[float, float]] = []
    for amount in itertools.cycle(min(a, per_minute) for a in amounts):
        while (wait := limit.wait(amount)) > 0:
            now += wait
        if now > 600 or len(taken) > 3000:
            break
        limit.take(amount)
        taken.append((now, amount))
    for start, _ in taken:
        assert sum(a for at, a in taken if start <= at < start + 60) <= per_minute * (1 + 1e-6)
    whole_minutes = now / 60
    assert sum(a for _, a in taken) >= per_minute * (whole_minutes - 1) * 0.5, "nor does it hold back"


def test_retry_after_in_both_forms() -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    seconds = {
        "7": 7.0, "0.5": 0.5, "Thu, 01 Jan 2026 12:00:30 GMT": 30.0, "Thu, 01 Jan 2026 11:00:00 GMT": 0.0,
        "Fri, 31 Dec 99999999999999999999 23:59:59 GMT": None, "soon": None, "": None, "999999": 999999.0,
    }  # fmt: skip
    for value, expected in seconds.items():
        assert retry_after(httpx.Headers({"retry-after": value}), now) == expected, value
    assert retry_after(httpx.Headers({}), now + timedelta(0)) is None


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
