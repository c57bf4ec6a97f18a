"""A champion behind MLflow's own server, `mlflow models serve`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
import pytest

from cotd.students.student import Student
from cotd.study.config import StudyConfig
from cotd.tracking.runs import StudyTracker
from pipelines.promote import promote
from pipelines.sweep.plan import Plan
from tests.processes import free_port, running, wait_for


@pytest.mark.integration
def test_mlflow_serves_the_champion(
    study: tuple[StudyConfig, Plan], tracker: StudyTracker, database: str, tmp_path: Path
) -> None:
    promote(tracker.config, all_methods=True)
    model, port = f"models:/{tracker.config.tracking.registered_model}@champion", free_port()
    scripts = Path(sys.executable).parent
    command = [str(scripts / "mlflow"), "models", "serve", "-m", model, "--env-manager", "local", "--port", str(port)]
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"  # MLflow starts uvicorn by name
    texts = ["A warm and funny film.", "Dull."]
    with running(command, tmp_path / "log", MLFLOW_TRACKING_URI=database, PATH=path):
        wait_for(f"http://127.0.0.1:{port}/ping", tmp_path / "log")
        response = httpx.post(f"http://127.0.0.1:{port}/invocations", json={"inputs": texts}, timeout=60)
    assert response.status_code == 200, response.text
    expected = Student.load(model).predict(texts)
    rows = response.json()["predictions"]
    assert [(r["label"], r["truncated"]) for r in rows] == [(p.label, p.truncated) for p in expected]
    assert [r["score"] for r in rows] == pytest.approx([p.score for p in expected], abs=1e-4)
