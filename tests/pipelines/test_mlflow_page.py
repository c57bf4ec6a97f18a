"""MLflow's own pages of a study, in headless Chromium: what a user sees of eight trials. `pytest -m browser` runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
import pytest

from cotd.config import load_config
from pipelines.study import Plan, plan_study
from tests.processes import free_port, running, wait_for

pytestmark = pytest.mark.browser

STUDY = """
name: page
data: {source: "embedded:rotten-tomatoes", train_rows: 200, validation_rows: 60, test_rows: 100}
grid: {method: [finetune], fraction: [0.25, 1.0], size: [tiny], seed: [0, 1, 2, 3]}
training: {steps: 12, batch_size: 8, eval_every: 4, max_input_tokens: 48}
"""


@pytest.fixture(scope="module")
def study(rotten_tomatoes: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Eight trials of the embedded student, swept."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "study.yaml").write_text(f"{STUDY}storage: {folder / 'runs'}\n")
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    command = [sys.executable, "-m", "cotd.cli", "sweep", str(folder / "study.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return plan_study(load_config(folder / "study.yaml"))


@pytest.fixture(scope="module")
def page(study: Plan, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], str]]:
    """Opens a page of `mlflow ui`, waits for a text, and returns all its text."""
    port, log = free_port(), tmp_path_factory.mktemp("ui") / "log"
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", study.config.tracking_uri()]
    opened = browser.new_context(viewport={"width": 1600, "height": 1000}).new_page()

    def visit(path: str, expected: str) -> str:
        opened.goto(f"http://127.0.0.1:{port}/#{path}")
        opened.get_by_text(expected).first.wait_for(timeout=60_000)
        opened.wait_for_load_state("networkidle")
        if folder := os.environ.get("COTD_SCREENSHOTS"):
            opened.screenshot(path=f"{folder}/{re.sub('[^a-z]+', '-', expected.lower())}.png")
        return str(opened.inner_text("body"))

    with running(command, log, MLFLOW_DISABLE_TELEMETRY="true"):
        wait_for(f"http://127.0.0.1:{port}/health", log)
        yield visit
    opened.context.close()


@pytest.fixture(scope="module")
def runs(study: Plan) -> dict[str, Any]:
    """Title → run of each trial."""
    client = mlflow.MlflowClient(study.config.tracking_uri(), study.config.tracking_uri())
    experiment = client.get_experiment_by_name("page")
    return {r.info.run_name: r for r in client.search_runs([experiment.experiment_id], "tags.`cotd.kind` = 'trial'")}


def test_the_runs_table_names_each_trial(page: Callable[[str, str], str], runs: dict[str, Any]) -> None:
    experiment = next(iter(runs.values())).info.experiment_id
    text = page(f"/experiments/{experiment}/runs", "finetune · 25 % · tiny · seed 0")
    assert len(runs) == 8
    for title in runs:
        assert title in text
    assert "embedded:rotten-tomatoes" in text, "the Dataset column says what was trained on"


def test_eight_trials_compare(page: Callable[[str, str], str], runs: dict[str, Any], study: Plan) -> None:
    experiment = next(iter(runs.values())).info.experiment_id
    ids = json.dumps([r.info.run_id for r in runs.values()])
    text = page(f"/compare-runs?runs={quote(ids)}&experiments={quote(json.dumps([experiment]))}", "Comparing 8 Runs")
    for title in runs:
        assert title in text
    for shown in ("fraction", "seed", "test_accuracy", "test_ci_low", "best_validation_accuracy", "method"):
        assert shown in text
    for trial in study.trials:
        accuracy = study.folder(trial).result()["test"]["accuracy"]
        assert f"{accuracy:.3g}" in text
    assert "1970" not in text


def test_a_trials_page_has_its_inputs_its_student_and_its_workers_load(
    page: Callable[[str, str], str], runs: dict[str, Any]
) -> None:
    run = runs["finetune · 25 % · tiny · seed 0"]
    here = f"/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    text = page(here, "finetune · 25 % · tiny · seed 0")
    for split in ("train · 25 %", "validation", "test"):
        assert f"embedded:rotten-tomatoes · {split}" in text
    assert "student" in text
    assert "process_memory_usage_megabytes" in page(f"{here}/system-metrics", "process_memory_usage_megabytes")
