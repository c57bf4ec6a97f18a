"""Clients of the endpoint, one that waits and one for asyncio."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType

import httpx

from cotd.errors import CotdError
from serve.schemas import MAX_TEXTS, PredictResponse, TextPrediction
from serve.settings import TOKEN_VARIABLE

LONGEST_WAIT = 30.0
FIRST_WAIT = 0.2
# A rationale takes a thousand times as long as a label, and fewer may wait at once.
MAX_EXPLAINED = 16
PASSING = (429, 500, 502, 503, 504)
# What an endpoint says that takes fewer texts, or shorter bodies, than this client sends.
TOO_MUCH = ("too_many_texts", "body_too_large")


class Rejected(CotdError):
    """The endpoint answers, and does not take these texts: one of them is at fault, or there are too many.

    Attributes:
        code: what the endpoint calls it.
    """

    def __init__(self, message: str, code: str = ""):
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[Rejected], tuple[str, str]]:
        return type(self), (str(self), self.code)


class Policy:
    """What both clients decide alike: how texts are split, what is asked again, and when."""

    def __init__(self, url: str, token: str | None, retries: int):
        self.url = url.rstrip("/")
        self.retries = retries
        token = token or os.environ.get(TOKEN_VARIABLE, "").strip()
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.most = {False: MAX_TEXTS, True: MAX_EXPLAINED}  # texts a request, without and with rationales

    def split(self, texts: Sequence[str], rationale: bool) -> list[list[str]]:
        size = self.most[rationale]
        return [list(texts[start : start + size]) for start in range(0, len(texts), size)]

    def learn(self, error: Rejected, texts: Sequence[str], rationale: bool) -> None:
        """Sends less at once from now on, if it is that which was rejected.

        Raises:
            Rejected: it was something else, or it was one text.
        """
        if error.code not in TOO_MUCH or len(texts) == 1:
            raise error
        self.most[rationale] = min(self.most[rationale], len(texts) // 2)

    def settle(self, attempt: int, outcome: httpx.Response | httpx.TransportError) -> PredictResponse | float:
        """What to do about a request's outcome: the answer it holds, or the seconds to wait before it is made again.

        Args:
            attempt: how often the request was made before.

        Raises:
            CotdError: making it again would not help, or it was made often enough.
            Rejected: it is the texts that the endpoint does not take.
        """
        last = attempt >= self.retries
        wait = backoff(attempt)
        if isinstance(outcome, httpx.TransportError):
            # A refused connection at once: it is more likely that nothing was started than that it restarts.
            if last or (attempt == 0 and isinstance(outcome, httpx.ConnectError)):
                raise CotdError(
                    f"no answer from {self.url} ({outcome or type(outcome).__name__}). "
                    "Start the endpoint with `cotd serve`, or name it: --url"
                ) from outcome
            return wait
        if outcome.status_code == 200:
            return PredictResponse.model_validate_json(outcome.content)
        if last or outcome.status_code not in PASSING:
            code, message = explain_refusal(outcome)
            said = f"{self.url} answered {outcome.status_code}: {message}"
            raise Rejected(said, code) if outcome.status_code in (413, 422) else CotdError(said)
        return wait_seconds(outcome, wait)


class Client:
    """Asks a running endpoint; keeps its connection, and splits long lists into several requests.

    How many texts the endpoint takes at once it learns when it is told that they were too many. A request that finds the
    queue full is made again after the time that the endpoint names, one that finds the endpoint away after a little:
    predictions have no side effect.

    >>> with Client("http://127.0.0.1:8000") as client:
    ...     client.predict(["A warm and funny film."])[0].label

    Args:
        timeout_seconds: for one request; those with rationales take seconds a text.
        token: what the endpoint wants to see; by default what COTD_SERVE_TOKEN holds, if anything.
        retries: how often a request is made again.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        timeout_seconds: float = 60.0,
        token: str | None = None,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
    ):
        self.policy = Policy(url, token, retries)
        self.http = httpx.Client(
            base_url=self.policy.url, timeout=timeout_seconds, trust_env=False, headers=self.policy.headers, transport=transport
        )

    def predict(self, texts: Sequence[str], rationale: bool = False) -> list[TextPrediction]:
        """The predictions for `texts`, in their order.

        Raises:
            CotdError: the endpoint cannot be reached, or refuses the request.
            Rejected: it does not take one of the texts.
        """
        predictions: list[TextPrediction] = []
        while rest := texts[len(predictions) :]:
            part = list(rest[: self.policy.most[rationale]])
            try:
                predictions += self.request(part, rationale).predictions
            except Rejected as error:
                self.policy.learn(error, part, rationale)
        return predictions

    def request(self, texts: list[str], rationale: bool = False) -> PredictResponse:
        """One request, with the model that answered it.

        Raises:
            CotdError: the endpoint cannot be reached, or refuses the request.
        """
        attempt = 0
        while True:
            try:
                outcome: httpx.Response | httpx.TransportError = self.http.post("/v1/predict", json=body(texts, rationale))
            except httpx.TransportError as error:
                outcome = error
            settled = self.policy.settle(attempt, outcome)
            if isinstance(settled, PredictResponse):
                return settled
            time.sleep(settled)
            attempt += 1

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """`Client` for asyncio. Parts of a long list are asked for at once; any number of coroutines may share one.

    >>> async with AsyncClient("http://127.0.0.1:8000") as client:
    ...     (await client.predict(["A warm and funny film."]))[0].label

    Args:
        timeout_seconds, token, retries: as of `Client`.
        concurrency: requests under way at once, of all coroutines together; the others wait here.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        timeout_seconds: float = 60.0,
        token: str | None = None,
        retries: int = 3,
        concurrency: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self.policy = Policy(url, token, retries)
        self.room = asyncio.Semaphore(concurrency)
        # The wait for a connection is the wait for room: it shall not run into the timeout.
        self.http = httpx.AsyncClient(
            base_url=self.policy.url, timeout=timeout_seconds, trust_env=False, headers=self.policy.headers,
            transport=transport, limits=httpx.Limits(max_connections=concurrency),
        )  # fmt: skip

    async def predict(self, texts: Sequence[str], rationale: bool = False) -> list[TextPrediction]:
        """The predictions for `texts`, in their order.

        Raises:
            CotdError: the endpoint cannot be reached, or refuses one of the requests; the others are given up.
            Rejected: it does not take one of the texts.
        """
        asked = [asyncio.ensure_future(self._part(part, rationale)) for part in self.policy.split(texts, rationale)]
        try:
            return [p for answer in await asyncio.gather(*asked) for p in answer]
        finally:
            for request in asked:
                request.cancel()

    async def _part(self, texts: list[str], rationale: bool) -> list[TextPrediction]:
        try:
            return (await self.request(texts, rationale)).predictions
        except Rejected as error:
            self.policy.learn(error, texts, rationale)
        return await self.predict(texts, rationale)  # in smaller parts

    async def request(self, texts: list[str], rationale: bool = False) -> PredictResponse:
        """One request, with the model that answered it.

        Raises:
            CotdError: the endpoint cannot be reached, or refuses the request.
        """
        attempt = 0
        while True:
            async with self.room:
                try:
                    outcome: httpx.Response | httpx.TransportError = await self.http.post(
                        "/v1/predict", json=body(texts, rationale)
                    )
                except httpx.TransportError as error:
                    outcome = error
            settled = self.policy.settle(attempt, outcome)
            if isinstance(settled, PredictResponse):
                return settled
            await asyncio.sleep(settled)
            attempt += 1

    async def close(self) -> None:
        await self.http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def backoff(attempt: int) -> float:
    """Seconds to wait after a request was made `attempt` times before and failed once more."""
    # Clients that were turned away together shall not come back together.
    return min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt, 30)) * random.uniform(0.5, 1)


def body(texts: list[str], rationale: bool) -> dict[str, object]:
    return {"texts": texts, "rationale": rationale}


def wait_seconds(response: httpx.Response, default: float) -> float:
    """How long the endpoint, or a proxy before it, asks to wait (seconds or a date, RFC 9110, 10.2.3), within reason."""
    asked = response.headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return min(float(asked), LONGEST_WAIT)
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return default
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(max(0.0, (until - datetime.now(UTC)).total_seconds()), LONGEST_WAIT)


def explain_refusal(response: httpx.Response) -> tuple[str, str]:
    """The code and the message in an error response's body; a body of another shape is its own message."""
    try:
        error = response.json()["error"]
        return str(error.get("code", "")), str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", response.text[:200]
