"""Between strategy and engine: every request gets a completion, or is said to have none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cotd.teachers.config import BudgetConfig
from cotd.teachers.requests import Request
from cotd.teachers.store import CompletionStore, new_completion
from cotd.teachers.strategies import Tagged
from pipelines.annotate.ask import Asker
from pipelines.annotate.budget import Budget


def test_a_row_that_an_engine_loses_is_quarantined_and_asked_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def forgetful(requests: Iterable[Request]) -> Iterator[list[dict[str, Any]]]:
        taken = list(requests)
        asked.extend(r.prompt for r in taken)
        completions = [
            new_completion(r.key, text=r.prompt, finish_reason="stop", prompt_tokens=1, output_tokens=1) for r in taken
        ]
        yield completions if len(taken) == 1 else completions[:-1]

    def requests() -> Iterator[Tagged]:
        return (((str(i),), Request("double", "1", f"example {i}", {"max_tokens": 1})) for i in range(4))

    def run() -> dict[str, str | None]:
        ask = Asker(CompletionStore(tmp_path), lambda: forgetful, Budget(BudgetConfig(max_tokens=1000), len))
        return {i: completion["error"] for (i,), completion in ask(requests, "completions", lambda tag, completion: True)}

    assert run() == {"0": None, "1": None, "2": None, "3": "the engine gave no completion"}
    assert run() == dict.fromkeys("0123")
    assert asked == ["example 0", "example 1", "example 2", "example 3", "example 3"]
