"""One request to an endpoint's API, and the shape that every error has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from serve.endpoint.endpoint import Endpoint
from serve.settings import Settings

Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(with_endpoint: Any, settings: Settings) -> Ask:
    """One request to an endpoint of its own: to /v1/predict with a JSON body, or a GET of another path."""

    def run(
        body: Any = None, headers: dict[str, str] | None = None, path: str = "/v1/predict", **changes: Any
    ) -> httpx.Response:
        async def use(client: httpx.AsyncClient, _: Endpoint) -> httpx.Response:
            if body is None:
                return await client.get(path, headers=headers)
            return await client.post(path, json=body, headers=headers)

        return with_endpoint(settings.model_copy(update=changes), use)

    return run


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, checked to be of the one shape."""
    error = response.json()["error"]
    assert set(error) == {"code", "message", "request_id", "details"}
    assert error["request_id"] == response.headers["X-Request-ID"]
    return error
