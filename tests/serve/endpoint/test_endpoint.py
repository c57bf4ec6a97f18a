"""The health of an endpoint: whether its student can still compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cotd.students.student import Prediction
from serve.endpoint.endpoint import Endpoint
from serve.settings import Settings


@pytest.mark.parametrize("broken", ["raises", "no number"])
def test_a_student_that_cannot_compute_is_not_healthy(
    with_endpoint: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    async def use(client: Any, endpoint: Endpoint) -> None:
        await endpoint.check_health()
        runtime = endpoint.served.runtime

        def predict(*_: Any) -> list[Prediction]:
            if broken == "raises":
                raise RuntimeError("CUDA error: device-side assert triggered")
            return [Prediction("positive", float("nan"), {}, False)]

        with monkeypatch.context() as context:
            context.setattr(runtime, "predict", predict)
            for _ in range(2):
                with pytest.raises(RuntimeError, match=r"CUDA error|not a number"):
                    await endpoint.check_health()
        await endpoint.check_health()  # it has recovered

    with_endpoint(settings, use)


def test_health_costs_a_busy_replica_nothing(with_endpoint: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(client: Any, endpoint: Endpoint) -> None:
        assert (await client.post("/v1/predict", json={"texts": "fine"})).status_code == 200
        monkeypatch.setattr(endpoint.served.runtime, "predict", lambda *_: 1 / 0)
        await endpoint.check_health()  # by the batch that has been computed
        assert (await client.post("/v1/predict", json={"texts": "fine"})).status_code == 500
        with pytest.raises(ZeroDivisionError):
            await endpoint.check_health()

    with_endpoint(settings, use)


def test_an_idle_student_of_free_answers_does_not_write_to_prove_its_health(
    with_endpoint: Any, settings: Settings, student_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(client: Any, endpoint: Endpoint) -> None:
        monkeypatch.setattr(endpoint.served.runtime, "predict", lambda *_: 1 / 0)
        await endpoint.check_health()
        assert (await client.post("/v1/predict", json={"texts": "fine"})).status_code == 500
        with pytest.raises(ZeroDivisionError):
            await endpoint.check_health()

    with_endpoint(settings.model_copy(update={"student": str(student_of("sums"))}), use)
