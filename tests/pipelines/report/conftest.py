"""The `study` fixture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.report.studies import Make, Study


@pytest.fixture
def study(write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a Study; its grid's axes are given by name.

    Nothing is written to MLflow, and base models are not scored: test_rescoring does that.
    """
    monkeypatch.setattr("pipelines.report.results.log_runs", lambda plan, trials: [])
    monkeypatch.setattr("pipelines.report.run.base_scores", lambda *arguments: [])

    def make(**grid: list[Any]) -> Study:
        default = {"method": ["finetune", "distill"], "fraction": [0.1, 1.0], "size": ["tiny"], "seed": [0, 1]}
        return Study(write_study, default | grid)

    return make
