"""What an endpoint's errors mean, in whatever form they come: what is waited for, what is quarantined, what ends a run."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from cotd.errors import CotdError
from cotd.teachers.api_config import ApiConfig
from cotd.teachers.requests import Request
from pipelines.annotate.engines.api.endpoint import Endpoint
from pipelines.annotate.engines.api.errors import ServerError, Transient, read_error, status_of
from pipelines.annotate.engines.api.responses import Usage
from pipelines.annotate.files import read_annotations
from pipelines.annotate.run import annotate
from tests.pipelines.annotate.fault_server import KEY, RESPONSES, MakeStudy, Provider, number_of


@pytest.mark.parametrize("fault", ["402", "400_credit", "403_credit", "429_credit", "200_credit"])
def test_an_account_without_credit_ends_the_run_which_goes_on_once_it_is_topped_up(
    study: MakeStudy, provider: Provider, fault: str
) -> None:
    server = provider[0]
    server.fault = lambda prompt, tries: fault if len(server.bodies) > 20 else None
    config = study("teacher.api.concurrency=4")
    with pytest.raises(CotdError, match=r"the account at http\S+ has no credit left \(HTTP 4\d\d: .*Top it up"):
        annotate(config, yes=True)
    assert read_annotations(config) is None
    assert len(server.bodies) <= 20 + 4
    server.fault = lambda prompt, tries: None
    summary = annotate(config, yes=True)
    assert summary["annotations"]["usable"] == 48
    assert summary["usage"]["from_store"] == 20, "what was not paid for is asked again, and nothing else"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("403", "HTTP 403: flagged by a filter"),
        ("403_page", "HTTP 403: <html><h1>Blocked</h1></html>"),
        ("200_flagged", "HTTP 400: flagged by a filter"),
    ],
)
@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_text_that_is_forbidden_is_quarantined(
    study: MakeStudy, provider: Provider, fault: str, reason: str, concurrency: int
) -> None:
    """Wherever it comes, also first of all; a second run does not ask again."""
    server = provider[0]
    first: list[str] = []

    def forbid(prompt: str, tries: int) -> str | None:
        first.append(number_of(prompt))
        return fault if number_of(prompt) in (first[0], "3") else None

    server.fault = forbid
    config = study(f"teacher.api.concurrency={concurrency}")
    summary = annotate(config, yes=True)
    assert summary["annotations"]["quarantined"] == {reason: 2}
    assert summary["teacher"]["accuracy"] == 11 / 12
    asked = len(server.bodies)
    assert annotate(config, yes=True)["annotations"]["usable"] == 46
    assert len(server.bodies) == asked


def test_a_key_that_is_revoked_quarantines_nothing(study: MakeStudy, provider: Provider) -> None:
    server = provider[0]
    server.fault = lambda prompt, tries: "403" if len(server.bodies) > 20 else None
    with pytest.raises(CotdError, match=r"refuses the key \(HTTP 403: flagged by a filter\)\. Check the key .* TEACHER_KEY"):
        annotate(study(), yes=True)
    assert len(server.bodies) <= 20 + 8 + 1
    server.fault = lambda prompt, tries: None
    assert annotate(study(), yes=True)["annotations"]["usable"] == 48


LIMITS = ["200_limit", "200_limit_word", "200_limit_number", "200_wait", "200_stream", "403_limit"]


@pytest.mark.parametrize("fault", LIMITS)
def test_a_rate_limit_in_disguise_is_waited_for(study: MakeStudy, provider: Provider, fault: str) -> None:
    """And takes none of a row's retries."""
    server = provider[0]
    server.fault = lambda prompt, tries: fault if tries < 2 and int(number_of(prompt)) % 8 == 0 else None
    summary = annotate(study("teacher.api.retries=0"), yes=True)
    assert summary["annotations"]["usable"] == 48
    assert summary["spent"]["output_tokens"] == 60 * 10, "nothing is booked for completions that never came"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("200_choice", "HTTP 502: lost the provider"), ("200_unknown", "an error with HTTP 200: it did not go well")],
)
def test_what_a_server_says_of_a_failure_is_kept(study: MakeStudy, provider: Provider, fault: str, reason: str) -> None:
    server = provider[0]
    server.fault = lambda prompt, tries: fault if number_of(prompt) == "3" else None
    summary = annotate(study("teacher.api.retries=2"), yes=True)
    assert summary["annotations"]["quarantined"] == {reason: 2}
    assert {server.tries[p] for p in server.tries if number_of(p) == "3"} == {3}
    assert summary["spent"]["output_tokens"] == 58 * 10


@pytest.mark.parametrize("name", [name for name in RESPONSES if name.startswith("200_")])
def test_every_error_is_read(name: str) -> None:
    content = RESPONSES[name][1]
    if isinstance(content, dict) and "choices" not in content:
        error = read_error(content)
        assert error is not None
        assert error.message


@pytest.mark.parametrize("content", [None, [], {}, "", 3, {"choices": [{"message": {}}]}, {"error": None}, {"error": {}}, [[]]])
def test_no_error_is_made_up(content: object) -> None:
    assert read_error(content) is None


def test_a_parameter_is_named_by_its_place_too() -> None:
    """As FastAPI says it: of the parameters, the one that is too many."""
    error = read_error({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "not permitted"}]}, 422)
    assert error is not None
    assert (error.parameter, error.message) == ("seed", "not permitted")


def test_an_address_without_a_version_is_noticed() -> None:
    endpoint = Endpoint("teacher-1", ApiConfig(base_url="http://127.0.0.1:9", key_env=None), None, len)
    with pytest.raises(CotdError, match=r"base_url mostly ends in /v1"):
        endpoint.raise_for(ServerError(404, "", "not found", ""), httpx.Headers())


WAIT = {"Retry-After": "20"}


@pytest.mark.parametrize(
    ("status", "content", "headers", "meaning"),
    [
        (429, {"error": {"code": "insufficient_quota", "message": "Used up."}}, WAIT, "has no credit left"),
        (429, {"error": {"status": "RESOURCE_EXHAUSTED", "message": "insufficient quota: see your plan"}}, WAIT, None),
        (429, {"error": {"code": "7", "message": "账户余额不足"}}, {}, "has no credit left"),
        (403, {"code": 7, "message": "This account's balance is insufficient"}, {}, "has no credit left"),
        (403, {"error": "The team doesn't have any credits."}, {}, "has no credit left"),
        (400, {"error": {"type": "budget_exceeded", "message": "The limit is 3."}}, {}, "has no credit left"),
        (412, {"error": {"message": "spending limit reached"}}, {}, "has no credit left"),
        (400, {"error": {"message": "API key not valid."}}, {}, "refuses the key"),
        (200, {"error_code": 7, "error_msg": "request limit reached"}, {}, None),
        (200, {"errcode": 429, "errmsg": "wait"}, {}, None),
    ],
)
def test_what_servers_say_of_money_keys_and_limits(
    status: int, content: dict[str, Any], headers: dict[str, str], meaning: str | None
) -> None:
    """A `meaning` of None is a rate limit, which is waited for: it says nothing of the account."""
    endpoint = Endpoint("teacher-1", ApiConfig(base_url="http://127.0.0.1:9/v1", key_env=None), None, len)
    error = read_error(content, None if status == 200 else status)
    assert error is not None
    if meaning:
        with pytest.raises(CotdError, match=meaning):
            endpoint.raise_for(error, httpx.Headers(headers))
    else:
        with pytest.raises(Transient) as caught:
            endpoint.raise_for(error, httpx.Headers(headers))
        assert caught.value.rate_limited
        assert not caught.value.paid


@pytest.mark.parametrize(("content", "paid"), [(b"", False), (b"<html>Sign in</html>", False), (b'{"choices": [{"mess', True)])
def test_only_what_a_teacher_may_have_written_is_booked(content: bytes, paid: bool) -> None:
    endpoint = Endpoint("teacher-1", ApiConfig(base_url="http://127.0.0.1:9/v1", key_env=None), None, len)
    request, response = Request("teacher-1", "", "Hello", {"max_tokens": 9}), httpx.Response(200, content=content)
    with pytest.raises(Transient) as caught:
        endpoint.read(request, endpoint.read_json(response), response.text, Usage(), response.headers)
    assert caught.value.paid == paid


def test_words_stand_for_a_status() -> None:
    words = {
        "insufficient_quota": 402, "rate_limit_exceeded": 429, "RESOURCE_EXHAUSTED": 429, "context_length_exceeded": 400,
        "invalid_api_key": 401, "model_not_found": 404, "overloaded_error": 503, "it did not go well": None,
    }  # fmt: skip
    assert {word: status_of(word) for word in words} == words


# --- parameters, addresses, models ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "advice", "fix"),
    [
        ("temperature", r"Set teacher\.api\.extra_body: \{temperature: null\}", "teacher.api.extra_body={temperature: null}"),
        ("seed", r"Set teacher\.api\.extra_body: \{seed: null\}", "teacher.api.extra_body={seed: null}"),
        ("max_tokens", r"max_tokens_field: max_completion_tokens", "teacher.api.max_tokens_field=max_completion_tokens"),
        (
            "response_format",
            r"Set teacher\.api\.json_completions: object or,",
            "teacher.api.extra_body={response_format: null}",
        ),
    ],
)
def test_a_parameter_that_a_model_does_not_take_is_named_with_what_to_set(
    study: MakeStudy, provider: Provider, name: str, advice: str, fix: str
) -> None:
    server = provider[0]
    server.refuse = lambda path, body, headers: f"Unsupported parameter: '{name}'" if name in body else None
    with pytest.raises(CotdError, match=rf"refuses all requests of this kind.*Unsupported parameter: '{name}'.*{advice}"):
        annotate(study(), yes=True)
    assert len(server.bodies) <= 8
    assert annotate(study(fix), yes=True)["annotations"]["usable"] == 48
    assert name not in server.bodies[-1]


def test_a_model_that_takes_another_temperature_alone(study: MakeStudy, provider: Provider) -> None:
    """Samples are taken at 0.7, the test examples at 0: those that are refused are not taken for bad texts."""
    server = provider[0]
    server.refuse = lambda path, body, headers: "'temperature' must not be 0" if body["temperature"] == 0 else None
    with pytest.raises(CotdError, match=r"extra_body: \{temperature: null\}"):
        annotate(study("teacher.samples=2", "teacher.temperature=0.7"), yes=True)


@pytest.mark.parametrize("ending", ["", "/", "/chat/completions"])
@pytest.mark.parametrize(
    ("query", "header", "setting"),
    [("?api-version=2024-10-21", "api-key", []), ("?tier=2", "x-token", ["teacher.api.key_header=x-token"])],
)
def test_an_address_may_have_a_query_and_a_key_its_own_header(
    study: MakeStudy, provider: Provider, ending: str, query: str, header: str, setting: list[str]
) -> None:
    server, url = provider
    path = f"/v1/deployments/mine/chat/completions{query}"
    server.refuse = lambda asked, body, headers: None if asked == path and headers[header] == KEY else "not found"
    config = study(f"teacher.api.base_url={url}/deployments/mine{ending}{query}", *setting)
    assert annotate(config, yes=True)["annotations"]["usable"] == 48
    assert "authorization" not in server.headers[-1]


@pytest.mark.parametrize("query", ["api-key=abc", "code=abc", "api-version=1&sig=abc", "access_token="])
def test_no_secret_stands_in_an_address(study: MakeStudy, query: str) -> None:
    with pytest.raises(CotdError, match=r"teacher\.api\.base_url: holds credentials") as caught:
        study(f"teacher.api.base_url=https://host/v1?{query}")
    assert "abc" not in str(caught.value)


def test_a_list_of_models_is_a_hint(study: MakeStudy, provider: Provider, capsys: pytest.CaptureFixture[str]) -> None:
    server = provider[0]
    server.models, server.deployed = ["teacher-1"], {"teacher-x"}
    assert annotate(study("teacher.model=teacher-x"), yes=True)["annotations"]["usable"] == 48
    assert "does not list the model 'teacher-x' (teacher.model); it lists 1" in capsys.readouterr().err
    with pytest.raises(CotdError, match=r"has no model 'teacher-2' \(HTTP 404: no such model\)"):
        annotate(study("teacher.model=teacher-2"), yes=True)
    assert "Did you mean 'teacher-1'? It is asked all the same" in capsys.readouterr().err
