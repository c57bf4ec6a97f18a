"""Two students in one endpoint: the small one answers what it is sure of."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from cotd.errors import CotdError
from cotd.students.student import Student
from cotd.students.validated import Validated
from serve.endpoint.endpoint import Endpoint
from serve.log import LOG
from serve.settings import Settings

TEXTS = ["A warm and funny film.", "Dull.", "Not bad at all.", "fine", "The jokes fall flat.", "I would see it again."]


def save_changed(student_folder: Path, folder: Path, seed: int, validated: Validated | None = None, **card: Any) -> Path:
    """A student whose scores differ more from text to text, with other weights for each seed."""
    student = Student.load(student_folder, device="cpu")
    torch.manual_seed(seed)
    for weights in student.model.parameters():
        weights.data += 0.1 * torch.randn_like(weights)
    student.card |= card
    student.validated = validated
    student.save(folder)
    return folder


@pytest.fixture(scope="module")
def pair(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small student that writes no rationales, and a larger one that does."""
    folder = tmp_path_factory.mktemp("cascade")
    small = save_changed(student_folder, folder / "small", 1, writes_rationales=False, method="distill")
    return small, save_changed(student_folder, folder / "large", 2)


@pytest.fixture(scope="module")
def threshold(pair: tuple[Path, Path]) -> float:
    """Half of TEXTS are below it."""
    scores = sorted(p.score or 0.0 for p in Student.load(pair[0], device="cpu").predict(TEXTS))
    return (scores[2] + scores[3]) / 2


@pytest.fixture
def cascade(pair: tuple[Path, Path], threshold: float) -> Settings:
    return Settings(student=str(pair[0]), escalate=str(pair[1]), below=str(threshold), poll_seconds=0)


def test_the_larger_student_answers_what_the_small_one_is_not_sure_of(
    with_endpoint: Any, cascade: Settings, pair: tuple[Path, Path], threshold: float
) -> None:
    small, large = (Student.load(folder, device="cpu").predict(TEXTS) for folder in pair)
    by = ["escalated" if (p.score or 0) < threshold else "student" for p in small]
    expected = [large[i] if who == "escalated" else small[i] for i, who in enumerate(by)]
    assert by.count("escalated") == 3

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        rows = (await client.post("/v1/predict", json={"texts": TEXTS})).json()["predictions"]
        assert [row["answered_by"] for row in rows] == by
        for row, prediction in zip(rows, expected, strict=True):
            assert row["label"] == prediction.label
            assert row["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-3)
        model = (await client.get("/v1/model")).json()
        assert (model["name"], model["escalation"]["name"]) == ("small", "large")
        assert model["escalation"]["threshold"] == threshold
        assert model["can_explain"], "one of the two can"
        metrics = (await client.get("/metrics")).text
        assert "cotd_escalated_texts_total 3.0" in metrics
        await endpoint.check_health()
        endpoint.escalated.failed = 1
        endpoint.served.larger.runtime.predict = lambda *_: 1 / 0  # type: ignore
        with pytest.raises(ZeroDivisionError):
            await endpoint.check_health()

    with_endpoint(cascade, use)


def test_a_text_that_is_not_handed_on_does_not_wait_for_the_larger_student(
    with_endpoint: Any, cascade: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        rows = (await client.post("/v1/predict", json={"texts": TEXTS})).json()["predictions"]
        sure = next(text for text, row in zip(TEXTS, rows, strict=True) if row["answered_by"] == "student")
        monkeypatch.setattr(endpoint.served.larger.runtime, "predict", lambda *_: 1 / 0)  # type: ignore[union-attr]
        assert (await client.post("/v1/predict", json={"texts": sure})).status_code == 200
        assert (await client.post("/v1/predict", json={"texts": TEXTS})).status_code == 500

    with_endpoint(cascade, use)


def test_reasons_are_written_by_the_one_that_can(
    with_endpoint: Any, cascade: Settings, pair: tuple[Path, Path], student_folder: Path, tmp_path: Path
) -> None:
    reasons = Student.load(pair[1], device="cpu").explain(TEXTS)

    async def use(client: httpx.AsyncClient, _: Endpoint) -> None:
        body = {"texts": TEXTS, "rationale": True}
        rows = (await client.post("/v1/predict", json=body)).json()["predictions"]
        assert [row["rationale"] for row in rows] == reasons
        lines = (await client.post("/v1/predict", json={**body, "stream": True})).text.splitlines()
        first, *pieces = map(json.loads, lines)
        assert {row["answered_by"] for row in first["predictions"]} == {"student", "escalated"}
        streamed = ["".join(p["rationale"] for p in pieces if p["index"] == i).strip() for i in range(len(TEXTS))]
        assert streamed == reasons

    with_endpoint(cascade, use)
    explains = save_changed(student_folder, tmp_path / "explains", 1)
    own = Student.load(explains, device="cpu").explain(TEXTS)

    async def ask_both(client: httpx.AsyncClient, _: Endpoint) -> None:
        rows = (await client.post("/v1/predict", json={"texts": TEXTS, "rationale": True})).json()["predictions"]
        for row, by_small, by_large in zip(rows, own, reasons, strict=True):
            assert row["rationale"] == (by_small if row["answered_by"] == "student" else by_large)

    with_endpoint(cascade.model_copy(update={"student": str(explains)}), ask_both)


def test_the_champion_is_exchanged_in_a_cascade_and_one_without_a_threshold_is_refused(
    with_endpoint: Any, registry: Any, student_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LOG.setLevel(logging.INFO)
    ids, right = np.arange(5, dtype=np.uint64), np.array([True] * 5)
    answers = (
        Validated(ids, np.array([0.9, 0.9, 0.9, 0.5, 0.5]), np.arange(5) < 3),
        Validated(ids, np.linspace(0.6, 0.9, 5), right),
        None,
    )
    versions = [registry.add(save_changed(student_folder, tmp_path / str(i), 1, each)) for i, each in enumerate(answers)]
    larger = registry.add(save_changed(student_folder, tmp_path / "large", 2, Validated(ids, np.full(5, 0.7), right)))
    registry.client.set_registered_model_alias("cotd-student", "large", larger)
    registry.promote(versions[0])
    settings = Settings(
        student="models:/cotd-student@champion",
        escalate="models:/cotd-student@large",
        tracking_uri=registry.uri,
        poll_seconds=0,
    )

    async def use(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        thresholds = []
        for version in versions:
            registry.promote(version)
            await endpoint.champion.refresh()
            model = (await client.get("/v1/model")).json()
            thresholds.append((model["version"], model["escalation"]["version"], model["escalation"]["threshold"]))
        assert thresholds == [(versions[0], larger, 0.9), (versions[1], larger, 0.6), (versions[1], larger, 0.6)]

    with_endpoint(settings, use)
    assert "came without its answers to validation examples" in caplog.text


@pytest.mark.parametrize(
    ("name", "card", "problem"),
    [("sums", {}, "are free and have no confidence"), ("tickets", {}, "different tasks")],
)
def test_students_that_cannot_be_a_cascade_are_refused(
    with_endpoint: Any, cascade: Settings, student_of: Callable[..., Path], name: str, card: dict, problem: str
) -> None:
    other = str(student_of(name, **card))
    update = {"escalate": other} if problem == "different tasks" else {"student": other, "escalate": other}

    async def use(*_: Any) -> None: ...

    with pytest.raises(CotdError, match=problem):
        with_endpoint(cascade.model_copy(update=update), use)
