"""MLflow's own pages of a study, in headless Chromium: what a user sees of four trials."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
import pytest

from cotd.study.config import load_config
from cotd.tracking.runs import StudyTracker
from cotd.tracking.system_metrics import sample_load
from cotd.training.train import train_trial
from pipelines.sweep.plan import Plan, plan_study
from tests.processes import free_port, running, wait_for

pytestmark = pytest.mark.integration

STUDY = """
name: page
data: {source: "embedded:rotten-tomatoes", train_rows: 200, validation_rows: 60, test_rows: 100}
grid: {method: [finetune], fraction: [0.25, 1.0], size: [tiny], seed: [0, 1]}
training: {optimizer: adamw, steps: 6, batch_size: 8, eval_every: 2, max_input_tokens: 48}
"""


@pytest.fixture(scope="module")
def study(
    rotten_tomatoes: Path, tiny_t5: Path, make_store: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> Plan:
    """Four trials, trained in this process by the code of a sweep's workers, and logged by that of its follower."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "study.yaml").write_text(f"{STUDY}sizes: {{tiny: {tiny_t5}}}\nstorage: {folder / 'runs'}\n")
    config = load_config(folder / "study.yaml")
    make_store(folder / "runs" / "mlflow.db")
    plan, tracker = plan_study(config), StudyTracker(config)
    tracker.start_study()
    for trial in sorted(plan.trials, key=lambda trial: (trial.fraction, trial.seed)):  # the first three are logged as models
        place = plan.folder(trial)
        place.write_trial(trial, config.model_dump())
        with sample_load(place.system_metrics, interval=0.05):
            train_trial(trial, place, plan.examples, None, plan.provenance)
        tracker.sync_trial(trial, place)
    tracker.end_study("FINISHED")
    return plan


@pytest.fixture(scope="module")
def page(study: Plan, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Opens a page of `mlflow ui`, and waits for each of some texts."""
    port, log = free_port(), tmp_path_factory.mktemp("ui") / "log"
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", study.config.tracking_uri()]
    opened = browser.new_context(viewport={"width": 1600, "height": 1000}).new_page()

    def visit(path: str, *expected: str) -> Any:
        opened.goto("about:blank")  # a change after the # alone loads nothing
        opened.goto(f"http://127.0.0.1:{port}/#{path}")
        for text in expected:
            opened.get_by_text(text).first.wait_for(state="attached", timeout=60_000)
        if folder := os.environ.get("COTD_SCREENSHOTS"):
            opened.wait_for_timeout(5000)  # charts are drawn after the text
            opened.screenshot(path=f"{folder}/{re.sub('[^a-z]+', '-', expected[0].lower())}.png")
        return opened

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


def test_the_runs_table_names_each_trial(page: Callable[..., Any], runs: dict[str, Any]) -> None:
    experiment = next(iter(runs.values())).info.experiment_id
    assert len(runs) == 4
    table = page(f"/experiments/{experiment}/runs", "matching runs")
    table.locator(".ag-row button").first.click()  # the study's run is there, and opens
    for expected in (*runs, "embedded:rotten-tomatoes · train"):
        table.get_by_text(expected).first.wait_for(state="attached")


def test_trials_compare(page: Callable[..., Any], runs: dict[str, Any], study: Plan) -> None:
    experiment = next(iter(runs.values())).info.experiment_id
    ids = json.dumps([r.info.run_id for r in runs.values()])
    compared = page(
        f"/compare-runs?runs={quote(ids)}&experiments={quote(json.dumps([experiment]))}", "Comparing 4 Runs", *runs, "fraction"
    )
    compared.get_by_text("best_validation_accuracy").first.wait_for(state="attached")
    text = compared.inner_text("body")
    first = study.folder_of(next(iter(runs.values())).data.tags["cotd.trial_id"])  # no more columns are drawn than are seen
    assert f"{round(first.result()['validation']['accuracy'], 3):g}" in text
    assert not re.search(r"1970-|/1970", text)  # a date, not a metric that happens to be 1970.3


def test_a_trials_page_has_its_inputs_its_student_and_its_workers_load(page: Callable[..., Any], runs: dict[str, Any]) -> None:
    run = runs["finetune · 25 % · tiny · seed 0"]
    here = f"/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    page(here, "embedded:rotten-tomatoes · train · 25 %", "Finished", "student")
    page(f"{here}/system-metrics", "process_memory_usage_megabytes")
