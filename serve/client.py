"""Clients of the endpoint: `Client` blocks, `AsyncClient` is for asyncio. Both split long lists and repeat failed requests."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from cotd.errors import CotdError
from cotd.utils.retry_after import retry_after_seconds
from serve.schemas import MAX_TEXTS, ModelResponse, PredictResponse, TextPrediction
from serve.settings import TOKEN_VARIABLE, is_loopback

FIRST_WAIT, LONGEST_WAIT = 0.2, 30.0  # seconds before a request is repeated
MAX_EXPLAINED = 16  # texts in a request with rationales: one takes a thousand times as long as a label
RETRIED_STATUSES = (429, 500, 502, 503, 504)
TOO_MUCH = ("too_many_texts", "body_too_large")  # codes of refusals that fewer texts in a request may avoid

Choices = Sequence[Sequence[str]] | None


class Rejected(CotdError):
    """The endpoint does not take these texts: one of them is invalid, or there are too many.

    Attributes:
        code: the endpoint's error code.
    """

    def __init__(self, message: str, code: str = ""):
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[Rejected], tuple[str, str]]:
        return type(self), (str(self), self.code)


class Failed(CotdError):
    """The endpoint failed at these texts, however often it was asked: one of them may be the cause."""


class NotFound(CotdError):
    """The endpoint has nothing at this path: it is not cotd's, or stands behind something that passes on predictions alone."""


@dataclass(eq=False)
class BaseClient:
    """What both clients share: arguments, the size of requests, and what is repeated, which httpx does for connections only.

    Args:
        timeout_seconds: for one request; those with rationales take seconds a text.
        token: the bearer token; by default the value of COTD_SERVE_TOKEN, if it is set.
        retries: how often a failed request is repeated.
        plain_http: whether the token may be sent unencrypted to another machine, as within a cluster.

    Raises:
        CotdError: no address of an endpoint, one that holds credentials, or a token that would be sent unencrypted.
    """

    url: str = "http://127.0.0.1:8000"
    timeout_seconds: float = 60.0
    token: str | None = field(default=None, repr=False)
    retries: int = 3
    plain_http: bool = False

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        self.request_sizes = {False: MAX_TEXTS, True: MAX_EXPLAINED}  # texts a request, without and with rationales
        token = self.token or os.environ.get(TOKEN_VARIABLE, "").strip()
        require_address(self.url, bool(token) and not self.plain_http)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http_options: dict[str, Any] = {
            "base_url": self.url, "timeout": self.timeout_seconds, "trust_env": False, "headers": headers
        }  # fmt: skip

    def reduce_size(self, error: Rejected, texts: Sequence[str], rationale: bool) -> None:
        """Makes later requests smaller than the rejected one, if it was too large.

        Raises:
            Rejected: it was rejected for another reason, or was a single text.
        """
        if error.code not in TOO_MUCH or len(texts) == 1:
            raise error
        self.request_sizes[rationale] = min(self.request_sizes[rationale], len(texts) // 2)

    def evaluate(self, attempt: int, outcome: httpx.Response | httpx.TransportError) -> httpx.Response | float:
        """The successful response to a request, or the seconds to wait before it is repeated.

        Args:
            attempt: how often the request has failed before.

        Raises:
            CotdError: repeating it would not help, or it has been repeated `retries` times.
            Rejected: the endpoint does not take its texts.
        """
        last = attempt >= self.retries
        if isinstance(outcome, httpx.TransportError):
            # A connection that is refused at the first attempt: the endpoint was probably never started.
            if last or (attempt == 0 and isinstance(outcome, httpx.ConnectError)):
                raise CotdError(
                    f"the endpoint at {self.url} does not respond ({outcome or type(outcome).__name__}). "
                    "Start the endpoint with `cotd serve`, or give its address: --url."
                ) from outcome
            return backoff(attempt)
        if outcome.status_code == 200:
            return outcome
        if last or outcome.status_code not in RETRIED_STATUSES:
            code, message = parse_error(outcome)
            message = f"{self.url} answered {outcome.status_code}: {message}"
            if outcome.status_code in (413, 422):
                raise Rejected(message, code)
            raise {404: NotFound, 500: Failed}.get(outcome.status_code, CotdError)(message)
        seconds = retry_after_seconds(outcome.headers.get("Retry-After", ""))
        return backoff(attempt) if seconds is None else min(seconds, LONGEST_WAIT)


@dataclass(eq=False)
class Client(BaseClient):
    """A client that blocks until the predictions are there. Use it in a `with` block, which closes its connection.

    >>> with Client("http://127.0.0.1:8000") as client:
    ...     client.predict(["A warm and funny film."])[0].label

    Arguments are those of `BaseClient`.
    """

    transport: httpx.BaseTransport | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.http = httpx.Client(transport=self.transport, **self.http_options)

    def predict(self, texts: Sequence[str], choices: Choices = None, rationale: bool = False) -> list[TextPrediction]:
        """The predictions for `texts`, in their order.

        Args:
            choices: for multiple choice: the options of each text.

        Raises:
            CotdError: the endpoint does not respond, or refuses the request.
            Rejected: it does not take one of the texts.
        """
        predictions: list[TextPrediction] = []
        while len(predictions) < len(texts):
            part = slice(len(predictions), len(predictions) + self.request_sizes[rationale])
            try:
                predictions += self.request(texts[part], choices and choices[part], rationale).predictions
            except Rejected as error:
                self.reduce_size(error, texts[part], rationale)
        return predictions

    def request(self, texts: Sequence[str], choices: Choices = None, rationale: bool = False) -> PredictResponse:
        """One request, with the model that served it. Arguments and errors are those of `predict`."""
        return parse_response(self._send("POST", "/v1/predict", request_body(texts, choices, rationale)), len(texts))

    def model(self) -> ModelResponse:
        """The student that is served, and its task.

        Raises:
            CotdError: the endpoint does not respond, or requires another token.
            NotFound: it does not tell.
        """
        return ModelResponse.model_validate_json(self._send("GET", "/v1/model").content)

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        attempt = 0
        while True:
            try:
                outcome: Any = self.http.request(method, path, json=body)
            except httpx.TransportError as error:
                outcome = error
            result = self.evaluate(attempt, outcome)
            if isinstance(result, httpx.Response):
                return result
            time.sleep(result)
            attempt += 1

    def close(self) -> None:
        """Closes the connection."""
        self.http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(eq=False)
class AsyncClient(BaseClient):
    """`Client` for asyncio. Parts of a long list are requested concurrently; any number of coroutines may share one client.

    >>> async with AsyncClient("http://127.0.0.1:8000") as client:
    ...     (await client.predict(["A warm and funny film."]))[0].label

    Args:
        concurrency: requests at a time, of all coroutines together; others wait.
    """

    concurrency: int = 4
    transport: httpx.AsyncBaseTransport | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # Waiting happens here, not for a connection of httpx: it must not count towards the timeout.
        self.slots = asyncio.Semaphore(self.concurrency)
        limits = httpx.Limits(max_connections=self.concurrency)
        self.http = httpx.AsyncClient(transport=self.transport, limits=limits, **self.http_options)

    async def predict(self, texts: Sequence[str], choices: Choices = None, rationale: bool = False) -> list[TextPrediction]:
        """The predictions for `texts`, in their order.

        Args:
            choices: for multiple choice: the options of each text.

        Raises:
            CotdError: the endpoint does not respond, or refuses one of the requests; the others are cancelled.
            Rejected: it does not take one of the texts.
        """
        size = self.request_sizes[rationale]
        parts = [slice(start, start + size) for start in range(0, len(texts), size)]
        requests = [asyncio.ensure_future(self._part(texts[part], choices and choices[part], rationale)) for part in parts]
        try:
            return [prediction for part in await asyncio.gather(*requests) for prediction in part]
        finally:
            for request in requests:
                request.cancel()

    async def _part(self, texts: Sequence[str], choices: Choices, rationale: bool) -> list[TextPrediction]:
        try:
            return (await self.request(texts, choices, rationale)).predictions
        except Rejected as error:
            self.reduce_size(error, texts, rationale)
        return await self.predict(texts, choices, rationale)  # in smaller parts

    async def request(self, texts: Sequence[str], choices: Choices = None, rationale: bool = False) -> PredictResponse:
        """One request, with the model that served it. Arguments and errors are those of `predict`."""
        attempt = 0
        while True:
            async with self.slots:
                try:
                    outcome: Any = await self.http.post("/v1/predict", json=request_body(texts, choices, rationale))
                except httpx.TransportError as error:
                    outcome = error
            result = self.evaluate(attempt, outcome)
            if isinstance(result, httpx.Response):
                return parse_response(result, len(texts))
            await asyncio.sleep(result)
            attempt += 1

    async def close(self) -> None:
        """Closes the connections."""
        await self.http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def require_address(url: str, encrypted: bool) -> None:
    """Raises a CotdError unless `url` is an address of an endpoint; if so asked, one that is encrypted or of this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host:
        raise CotdError(f"'{url}' is no address of an endpoint. Give one as http://HOST:PORT: --url.")
    if "@" in parts.netloc:
        raise CotdError(f"the address of {host} holds credentials. Leave them out, and set {TOKEN_VARIABLE} to the token.")
    if encrypted and parts.scheme == "http" and not is_loopback(host):
        raise CotdError(
            f"the token would be sent to {host} unencrypted. Use https, or a tunnel to this machine (ssh -L, kubectl "
            f"port-forward), or unset {TOKEN_VARIABLE}; Client(…, plain_http=True) sends it within a network that you trust."
        )


def request_body(texts: Sequence[str], choices: Choices, rationale: bool) -> dict[str, Any]:
    """The body of a request to predict."""
    body: dict[str, Any] = {"texts": list(texts), "rationale": rationale}
    return body if choices is None else body | {"choices": [list(options) for options in choices]}


def parse_response(response: httpx.Response, texts: int) -> PredictResponse:
    """A successful response to so many texts.

    Raises:
        CotdError: it is not of an endpoint of cotd, or has more or fewer predictions.
    """
    advice = "Give the address of an endpoint that `cotd serve` started: --url."
    try:
        parsed = PredictResponse.model_validate_json(response.content)
    except ValidationError as error:
        raise CotdError(
            f"{response.url} did not answer with predictions but with: {response.text[:100]!r}. {advice}"
        ) from error
    if len(parsed.predictions) != texts:
        raise CotdError(f"{response.url} answered {texts} texts with {len(parsed.predictions)} predictions. {advice}")
    return parsed


def backoff(attempt: int) -> float:
    """Seconds to wait after attempt number `attempt`, counted from 0; random, so that refused clients do not return together."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt, 30)) * random.uniform(0.5, 1)


def parse_error(response: httpx.Response) -> tuple[str, str]:
    """The code and the message of an error response; a body of another shape is its own message."""
    try:
        error = response.json()["error"]
        return str(error.get("code", "")), str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", response.text[:200]
