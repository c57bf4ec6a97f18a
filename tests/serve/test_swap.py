"""The change to a new champion: asked of a real registry, loaded aside, checked, exchanged or refused."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from serve.endpoint import LOG, Endpoint
from serve.settings import Settings


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def spoil_weights(folder: Path) -> None:
    change_weights(folder, lambda weights: weights["shared.weight"].fill_(math.nan))


def cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])


def other_task(folder: Path) -> None:
    words = {"bad": "negative", "good": "positive"}
    card = json.loads((folder / "cotd.json").read_text())
    card["task"] = {"name": "other", "labels": ["bad", "good"], "words": words, "positive": "good"}
    (folder / "cotd.json").write_text(json.dumps(card))


def settings_for(registry: Any) -> Settings:
    return Settings(student="models:/cotd-student@champion", tracking_uri=registry.uri, poll_seconds=0)


async def version(client: httpx.AsyncClient) -> str:
    return (await client.post("/v1/predict", json={"texts": ["A warm and funny film."]})).json()["model"]["version"]


def test_the_alias_decides_who_answers(with_endpoint: Any, registry: Any, student_folder: Path) -> None:
    first, second = registry.add(student_folder), registry.add(student_folder)
    registry.crown(first)

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        await endpoint.refresh()
        assert await version(client) == first
        registry.crown(second)
        assert await version(client) == first, "only a look at the alias changes the student"
        await endpoint.refresh()
        assert await version(client) == second
        registry.crown(first)  # rolled back
        await endpoint.refresh()
        assert await version(client) == first
        metrics = (await client.get("/metrics")).text
        assert 'cotd_model_swaps_total{outcome="swapped"} 2.0' in metrics
        assert f'cotd_model_replicas{{name="cotd-student",runtime="torch",version="{first}"}} 1.0' in metrics
        assert f'cotd_model_replicas{{name="cotd-student",runtime="torch",version="{second}"}} 0.0' in metrics

    with_endpoint(settings_for(registry), use)


def test_requests_under_way_end_on_the_student_they_began_with(with_endpoint: Any, registry: Any, student_folder: Path) -> None:
    first = registry.add(student_folder)
    second = registry.add(student_folder, lambda folder: change_weights(folder, lambda w: w["shared.weight"].neg_()))
    registry.crown(first)

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        async def ask() -> tuple[str, float]:
            answer = (await client.post("/v1/predict", json={"texts": ["A warm and funny film."] * 8})).json()
            scores = {round(p["probabilities"]["positive"], 4) for p in answer["predictions"]}
            assert len(scores) == 1, "one student answers a whole request"
            return answer["model"]["version"], scores.pop()

        registry.crown(second)
        swap = asyncio.create_task(endpoint.refresh())
        answers = []
        while not swap.done():
            answers += await asyncio.gather(*(ask() for _ in range(4)))
        answers += await asyncio.gather(*(ask() for _ in range(4)))
        assert {v for v, _ in answers} == {first, second}
        assert len(set(answers)) == 2, "the version named is the version that answered"

    with_endpoint(settings_for(registry).model_copy(update={"max_batch": 3}), use)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(spoil_weights, "a probability is not a number"), (cut_weights, "version 2 is refused"), (other_task, "its labels are bad, good")],
)  # fmt: skip
def test_a_champion_that_is_no_good_is_refused(
    with_endpoint: Any,
    registry: Any,
    student_folder: Path,
    spoil: Callable[[Path], None],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    LOG.setLevel(logging.INFO)
    first, bad = registry.add(student_folder), registry.add(student_folder, spoil)
    registry.crown(first)

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        registry.crown(bad)
        for _ in range(3):
            await endpoint.refresh()
            assert await version(client) == first
        metrics = (await client.get("/metrics")).text
        assert 'cotd_model_swaps_total{outcome="refused"} 1.0' in metrics, "it is tried once, not at every look"
        registry.crown(good := registry.add(student_folder))
        await endpoint.refresh()
        assert await version(client) == good

    with_endpoint(settings_for(registry), use)
    assert reason in caplog.text
    assert f"version {bad} is refused, still serving version {first}" in caplog.text


def test_a_registry_that_is_away_changes_nothing(with_endpoint: Any, registry: Any, student_folder: Path) -> None:
    registry.crown(first := registry.add(student_folder))

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        registry.client.delete_registered_model_alias("cotd-student", "champion")
        await endpoint.refresh()
        assert await version(client) == first
        assert 'cotd_model_swaps_total{outcome="registry_unreachable"} 1.0' in (await client.get("/metrics")).text

    with_endpoint(settings_for(registry), use)


def test_the_alias_is_watched_while_the_endpoint_runs(with_endpoint: Any, registry: Any, student_folder: Path) -> None:
    registry.crown(registry.add(student_folder))

    async def use(client: httpx.AsyncClient, _: Endpoint) -> None:
        registry.crown(second := registry.add(student_folder))
        async with asyncio.timeout(60):
            while await version(client) != second:
                await asyncio.sleep(0.05)

    with_endpoint(settings_for(registry).model_copy(update={"poll_seconds": 0.05}), use)
