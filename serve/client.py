"""A client of the endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import httpx

from cotd.errors import CotdError
from serve.schemas import MAX_TEXTS, PredictResponse, TextPrediction


class Client:
    """Asks a running endpoint; keeps its connection, and splits long lists into requests of `MAX_TEXTS`.

    >>> with Client("http://127.0.0.1:8000") as client:
    ...     client.predict(["A warm and funny film."])[0].label
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", timeout_seconds: float = 60.0):
        self.url = url.rstrip("/")
        self.http = httpx.Client(base_url=self.url, timeout=timeout_seconds, trust_env=False)

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
        try:
            response = self.http.post("/v1/predict", json={"texts": texts, "rationale": rationale})
        except httpx.TransportError as error:
            raise CotdError(
                f"no answer from {self.url} ({error}). Start the endpoint with `cotd serve`, or name it: --url"
            ) from error
        if response.status_code != 200:
            raise CotdError(f"{self.url} answered {response.status_code}: {explain_refusal(response)}")
        return PredictResponse.model_validate_json(response.content)

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def explain_refusal(response: httpx.Response) -> str:
    """The message in an error response's body."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
    if isinstance(detail, list):
        return "; ".join(str(d.get("msg", d)) for d in detail)
    return str(detail)
