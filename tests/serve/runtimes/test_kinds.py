"""Students of every kind behind the endpoint: options scored, rationales streamed, in the bits that they compute in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cotd.students.student import Student
from serve.runtimes.base import StudentRuntime
from serve.runtimes.parity import PROBES, difference, probe_choices
from serve.runtimes.registry import make_runtime, own_tolerance
from serve.settings import Settings

pytestmark = pytest.mark.thorough
Make = Callable[..., Path]
CHOICES = [["a fridge", "a drawer"], ["snow", "a ripe tomato", "coal"]]
TEXTS = ["Where is milk kept?", "What is red?"]
ENCODER = {"method": "finetune", "writes_rationales": False}


@pytest.mark.parametrize(
    ("base", "name", "card"),
    [
        ("llama", "tickets", {}),
        ("llama", "intents", {}),
        ("llama", "quiz", {}),
        ("llama", "sums", {}),
        ("llama", "tickets", {"rationale_before_label": True}),
        ("bart", "quiz", {}),
        ("mt5", "sums", {}),
        ("bert", "tickets", ENCODER),
    ],
)
def test_students_are_served_as_they_predict(student_of: Make, base: str, name: str, card: dict[str, Any]) -> None:
    student = Student.load(student_of(name, base, **card), "cpu")
    runtime = make_runtime("auto", student)
    assert isinstance(runtime, StudentRuntime)
    choices = probe_choices(student.task)
    for actual, expected in zip(runtime.predict(PROBES, choices), student.predict(PROBES, choices=choices), strict=True):
        assert difference(actual, expected, own_tolerance(student)) is None


@pytest.mark.parametrize(("name", "card"), [("tickets", {}), ("sums", {}), ("tickets", {"rationale_before_label": True})])
def test_sixteen_bits_are_no_reason_to_refuse_a_causal_student(
    student_of: Make, monkeypatch: pytest.MonkeyPatch, name: str, card: dict[str, Any]
) -> None:
    """They round differently as texts share a batch."""
    monkeypatch.setattr("cotd.students.backends.causal.backend.multiplies_bfloat16", lambda _: True)
    make_runtime("auto", Student.load(student_of(name, "llama", **card), "cpu"))


def test_a_causal_student_streams_its_rationale(with_endpoint: Any, settings: Settings, student_of: Make) -> None:
    async def use(client: Any, _: Any) -> None:
        body = {"texts": TEXTS, "choices": CHOICES, "rationale": True}
        whole = (await client.post("/v1/predict", json=body)).json()["predictions"]
        assert [list(row["probabilities"]) for row in whole] == CHOICES
        streamed = await client.post("/v1/predict", json={**body, "stream": True})
        first, *pieces = [json.loads(line) for line in streamed.text.splitlines()]
        assert [row["label"] for row in first["predictions"]] == [row["label"] for row in whole]
        for i, row in enumerate(whole):
            assert "".join(piece["rationale"] for piece in pieces if piece["index"] == i).strip() == row["rationale"]

    with_endpoint(settings.model_copy(update={"student": str(student_of("quiz", "llama"))}), use)


def test_an_encoder_says_that_it_writes_nothing(with_endpoint: Any, settings: Settings, student_of: Make) -> None:
    async def use(client: Any, _: Any) -> None:
        assert (await client.post("/v1/predict", json={"texts": TEXTS})).status_code == 200
        assert not (await client.get("/v1/model")).json()["can_explain"]
        answer = await client.post("/v1/predict", json={"texts": TEXTS, "rationale": True})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "no_rationales")

    with_endpoint(settings.model_copy(update={"student": str(student_of("tickets", "bert", **ENCODER))}), use)
