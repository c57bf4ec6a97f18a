"""The hot swap: the alias of a real registry is looked up, its student loaded, checked, and served or refused."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from cotd.errors import CotdError
from serve.endpoint.champion import Champion
from serve.endpoint.endpoint import Endpoint
from serve.log import LOG
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
    card["task"] = {"name": "other", "labels": ["bad", "good"], "verbalizers": words, "positive": "good"}
    (folder / "cotd.json").write_text(json.dumps(card))


def settings_for(registry: Any) -> Settings:
    return Settings(student="models:/cotd-student@champion", tracking_uri=registry.uri, poll_seconds=0)


async def version(client: httpx.AsyncClient) -> str:
    return (await client.post("/v1/predict", json={"texts": ["A warm and funny film."]})).json()["model"]["version"]


def test_the_alias_decides_who_answers(with_endpoint: Any, registry: Any, student_folder: Path) -> None:
    first, second = registry.add(student_folder), registry.add(student_folder)
    registry.promote(first)

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        await endpoint.champion.refresh()
        assert await version(client) == first
        registry.promote(second)
        assert await version(client) == first, "only a look at the alias changes the student"
        await endpoint.champion.refresh()
        assert await version(client) == second
        registry.promote(first)  # rolled back
        await endpoint.champion.refresh()
        assert await version(client) == first
        metrics = (await client.get("/metrics")).text
        assert 'cotd_model_swaps_total{outcome="swapped"} 2.0' in metrics
        assert f'cotd_model_replicas{{name="cotd-student",runtime="onnxruntime",version="{first}"}} 1.0' in metrics
        assert f'cotd_model_replicas{{name="cotd-student",runtime="onnxruntime",version="{second}"}} 0.0' in metrics

    with_endpoint(settings_for(registry), use)


def test_requests_under_way_end_on_the_student_they_began_with(with_endpoint: Any, registry: Any, student_folder: Path) -> None:
    first = registry.add(student_folder)
    second = registry.add(student_folder, lambda folder: change_weights(folder, lambda w: w["shared.weight"].neg_()))
    registry.promote(first)

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        async def ask() -> tuple[str, float]:
            answer = (await client.post("/v1/predict", json={"texts": ["A warm and funny film."] * 8})).json()
            scores = {round(p["probabilities"]["positive"], 4) for p in answer["predictions"]}
            assert len(scores) == 1, "one student answers a whole request"
            return answer["model"]["version"], scores.pop()

        registry.promote(second)
        swap = asyncio.create_task(endpoint.champion.refresh())
        answers = []
        while not swap.done():
            answers += await asyncio.gather(*(ask() for _ in range(4)))
        answers += await asyncio.gather(*(ask() for _ in range(4)))
        assert {v for v, _ in answers} == {first, second}
        assert len(set(answers)) == 2, "the version named is the version that answered"

    with_endpoint(settings_for(registry).model_copy(update={"max_batch": 3}), use)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(spoil_weights, "a probability is not a number"), (other_task, "its labels are bad, good")],
)
def test_an_unfit_champion_is_refused(
    with_endpoint: Any, registry: Any, student_folder: Path, spoil: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    LOG.setLevel(logging.INFO)
    first, bad = registry.add(student_folder), registry.add(student_folder, spoil)
    registry.promote(first)

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        registry.promote(bad)
        for _ in range(3):
            await endpoint.champion.refresh()
            assert await version(client) == first
        metrics = (await client.get("/metrics")).text
        assert 'cotd_model_swaps_total{outcome="refused"} 1.0' in metrics, "it is tried once, not at every look"
        registry.promote(good := registry.add(student_folder))
        await endpoint.champion.refresh()
        assert await version(client) == good

    with_endpoint(settings_for(registry), use)
    assert reason in caplog.text
    assert f"version {bad} is refused, still serving version {first}" in caplog.text


def test_a_champion_that_cannot_be_loaded_is_tried_again(
    with_endpoint: Any, registry: Any, student_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, broken = registry.add(student_folder), registry.add(student_folder, cut_weights)
    registry.promote(first)

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        registry.promote(broken)
        for _ in range(3):
            await endpoint.champion.refresh()
            assert await version(client) == first
        assert outcomes(await client.get("/metrics")) == {"not_loaded": 1}, "not at every look"
        monkeypatch.setattr("serve.endpoint.champion.time.monotonic", lambda now=time.monotonic: now() + 5)
        await endpoint.champion.refresh()
        await endpoint.champion.refresh()
        assert outcomes(await client.get("/metrics")) == {"not_loaded": 2}, "the second wait is longer"
        monkeypatch.setattr("serve.endpoint.champion.time.monotonic", lambda now=time.monotonic: now() + 5000)
        shutil.copy(student_folder / "model.safetensors", registry.folder_of(broken))
        await endpoint.champion.refresh()
        assert await version(client) == broken

    with_endpoint(settings_for(registry), use)


def outcomes(metrics: httpx.Response) -> dict[str, float]:
    """Looks at a moved alias, by outcome, those that happened."""
    found = re.findall(r'^cotd_model_swaps_total\{outcome="(\w+)"\} ([\d.]+)', metrics.text, re.MULTILINE)
    return {outcome: float(count) for outcome, count in found if float(count)}


async def nothing(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
    pass


@pytest.mark.parametrize("spoil", [spoil_weights, cut_weights, None])
def test_a_replica_that_starts_falls_back_to_what_was_served(
    with_endpoint: Any, registry: Any, student_folder: Path, tmp_path: Path, spoil: Callable[[Path], None] | None
) -> None:
    """The alias has moved on to a student that is no good, or (None) the registry is away."""
    settings = settings_for(registry).model_copy(update={"metrics_folder": str(tmp_path / "metrics")})
    first = registry.add(student_folder)
    registry.promote(first)
    with pytest.raises(CotdError, match="no model"):
        with_endpoint(settings.model_copy(update={"student": "models:/another@champion"}), nothing)
    with_endpoint(settings, nothing)
    if spoil:
        registry.promote(registry.add(student_folder, spoil))
    else:
        registry.client.delete_registered_model_alias("cotd-student", "champion")

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        assert await version(client) == first
        await endpoint.champion.refresh()
        assert await version(client) == first
        registry.promote(good := registry.add(student_folder))
        await endpoint.champion.refresh()
        assert await version(client) == good

    with_endpoint(settings, use)
    with pytest.raises(CotdError, match="no model"):
        with_endpoint(settings.model_copy(update={"student": "models:/another@champion"}), nothing)


def test_a_registry_that_is_away_changes_nothing(with_endpoint: Any, registry: Any, student_folder: Path) -> None:
    registry.promote(first := registry.add(student_folder))

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        registry.client.delete_registered_model_alias("cotd-student", "champion")
        await endpoint.champion.refresh()
        assert await version(client) == first
        assert 'cotd_model_swaps_total{outcome="registry_unreachable"} 1.0' in (await client.get("/metrics")).text

    with_endpoint(settings_for(registry), use)


def test_the_alias_is_watched_while_the_endpoint_runs_even_after_a_failure(
    with_endpoint: Any, registry: Any, student_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote(registry.add(student_folder))
    failures = [RuntimeError("a file of metrics cannot be written")]
    refresh = Champion.refresh

    async def fail_once(champion: Champion) -> None:
        if failures:
            raise failures.pop()
        await refresh(champion)

    async def use(client: httpx.AsyncClient, _: Endpoint) -> None:
        registry.promote(second := registry.add(student_folder))
        async with asyncio.timeout(60):
            while await version(client) != second:
                await asyncio.sleep(0.05)
        assert not failures

    monkeypatch.setattr(Champion, "refresh", fail_once)
    with_endpoint(settings_for(registry).model_copy(update={"poll_seconds": 0.05}), use)
