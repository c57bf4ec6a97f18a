"""How fast an endpoint is asked: its own rate limits, and ours."""

from __future__ import annotations

import itertools
import threading
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotd.errors import CotdError
from pipelines.annotate.engines.api.rate_limit import RateLimit, retry_after
from pipelines.annotate.run import annotate
from tests.pipelines.annotate.fault_server import MakeStudy, Provider


@pytest.mark.integration
def test_a_rate_limit_loses_no_row(study: MakeStudy, provider: Provider) -> None:
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


@pytest.mark.integration
def test_tokens_a_minute_are_kept_to(study: MakeStudy, provider: Provider) -> None:
    """A burst, then a steady pace: of 60 requests with 60 tokens each, what is over a burst's worth waits."""
    started = time.monotonic()
    annotate(study("teacher.api.tokens_per_minute=30000", "teacher.max_rationale_tokens=20"), yes=True)
    seconds = time.monotonic() - started
    assert seconds >= 60 * 60 / (30_000 / 60) - 5, "no more than five seconds' worth at once"
    assert seconds < 30


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


def test_retry_after_in_every_form() -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    seconds = {
        "7": 7.0, "0.5": 0.5, "Thu, 01 Jan 2026 12:00:30 GMT": 30.0, "Thu, 01 Jan 2026 11:00:00 GMT": 0.0,
        "Fri, 31 Dec 99999999999999999999 23:59:59 GMT": None, "soon": None, "": None, "999999": 999999.0,
    }  # fmt: skip
    for value, expected in seconds.items():
        assert retry_after(httpx.Headers({"retry-after": value}), now=now) == expected, value
    words = {
        "try again in 1m2.5s.": 62.5,
        "Please retry after 20 seconds": 20.0,
        "try again in 6ms": 0.006,
        "try again later": None,
    }
    for message, expected in words.items():
        assert retry_after(httpx.Headers({}), message) == expected, message
    assert retry_after(httpx.Headers({"retry-after-ms": "250", "retry-after": "1"})) == 0.25
    assert retry_after(httpx.Headers({}), now=now + timedelta(0)) is None
