"""A client of the endpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from types import TracebackType

import httpx

from cotd.errors import CotdError
from serve.schemas import MAX_TEXTS, PredictResponse, TextPrediction
from serve.settings import TOKEN_VARIABLE

LONGEST_WAIT = 30.0


class Client:
    """Asks a running endpoint; keeps its connection, and splits long lists into requests of `MAX_TEXTS`.

    A request that finds the queue full is made again after the time that the endpoint names, one that finds the
    endpoint away after a little: predictions have no side effect.

    >>> with Client("http://127.0.0.1:8000") as client:
    ...     client.predict(["A warm and funny film."])[0].label

    Args:
        token: what the endpoint wants to see; by default what COTD_SERVE_TOKEN holds, if anything.
        retries: how often a request is made again.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        timeout_seconds: float = 60.0,
        token: str | None = None,
        retries: int = 3,
    ):
        self.url = url.rstrip("/")
        self.retries = retries
        token = token or os.environ.get(TOKEN_VARIABLE, "").strip()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(base_url=self.url, timeout=timeout_seconds, trust_env=False, headers=headers)

    def predict(self, texts: Sequence[str], rationale: bool = False) -> list[TextPrediction]:
        """The predictions for `texts`, in their order.

        Raises:
            CotdError: the endpoint cannot be reached, or refuses the request.
        """
        predictions: list[TextPrediction] = []
        for start in range(0, len(texts), MAX_TEXTS):
            predictions += self.request(list(texts[start : start + MAX_TEXTS]), rationale).predictions
        return predictions

    def request(self, texts: list[str], rationale: bool = False) -> PredictResponse:
        """One request, with the model that answered it."""
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                response = self.http.post("/v1/predict", json={"texts": texts, "rationale": rationale})
            except httpx.TransportError as error:
                # A refused connection at once: it is more likely that nothing was started than that it restarts.
                if last or (attempt == 0 and isinstance(error, httpx.ConnectError)):
                    raise CotdError(
                        f"no answer from {self.url} ({error}). Start the endpoint with `cotd serve`, or name it: --url"
                    ) from error
                time.sleep(0.2 * 2**attempt)
                continue
            if response.status_code == 200:
                return PredictResponse.model_validate_json(response.content)
            if last or response.status_code not in (429, 500, 502, 503, 504):
                break
            time.sleep(wait_seconds(response, 0.2 * 2**attempt))
        raise CotdError(f"{self.url} answered {response.status_code}: {explain_refusal(response)}")

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def wait_seconds(response: httpx.Response, default: float) -> float:
    """How long the endpoint asks to wait, within reason."""
    asked = response.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_WAIT) if asked.isdecimal() else default


def explain_refusal(response: httpx.Response) -> str:
    """The message in an error response's body."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
