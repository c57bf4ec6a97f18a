"""The real path, tiny: real vLLM with the real embedded teacher, Ray Data, Ray Tune, SQLite MLflow, Ray Serve over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from tests.processes import marked

REPOSITORY = Path(__file__).parent.parent
COTD = [sys.executable, "-m", "cotd.cli"]
METHODS = ["finetune", "cot_labelled"]
SMALL = [
    "data.train_rows=24", "data.validation_rows=24", "data.test_rows=24", "teacher.calibration.rows=24",
    f"grid.method=[{','.join(METHODS)}]", "grid.fraction=[0.5,1.0]", "training.steps=8", "training.eval_every=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """A mark that every process started below inherits, and no way to a model hub or a package index."""
    blocked = "http://127.0.0.1:9"
    offline = {
        "HF_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "HTTP_PROXY": blocked,
        "HTTPS_PROXY": blocked,
        "NO_PROXY": "127.0.0.1",
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return {**inherited, **offline, "COTD_TEST_MARK": uuid.uuid4().hex}


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Starts a command that hears Ctrl-C, even where these tests run in a background job, which does not."""

    def hear_interrupts() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=hear_interrupts
    )


def run_demo(storage: Path, environment: dict[str, str], *extra: str) -> str:
    command = [*COTD, "demo", f"storage={storage}", *SMALL, *extra]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> tuple[Path, str]:
    """The storage folder and the output of a finished demo."""
    storage = tmp_path_factory.mktemp("runs")
    return storage, run_demo(storage, environment)


def test_report_holds_trials_teacher_champion_and_latency(demo: tuple[Path, str], environment: dict[str, str]) -> None:
    report = json.loads((demo[0] / "demo" / "report.json").read_text())
    assert {(t["method"], t["fraction"]) for t in report["trials"]} == {(m, f) for m in METHODS for f in (0.5, 1.0)}
    for trial in report["trials"]:
        assert trial["ci_low"] <= trial["accuracy"] <= trial["ci_high"]
        assert trial["n_test"] == 24
    assert report["teacher"]["n"] == 24
    assert report["champion"]["method"] == "cot_labelled"
    assert report["serving"]["requests"] == 100
    assert 0 < report["serving"]["p50_ms"] <= report["serving"]["p95_ms"]
    assert (demo[0] / "demo" / "accuracy.png").stat().st_size > 10_000
    assert marked(environment) == []


def test_annotations_are_the_teachers_own_words(demo: tuple[Path, str]) -> None:
    table = pd.read_parquet(demo[0] / "demo" / "annotations" / "annotations.parquet")
    assert table["review_id"].nunique() == 24
    assert set(table["gold_conditioned"]) == {True, False}
    usable = table[table["error"].isna()]
    assert len(usable) >= 40
    assert usable["rationale"].str.split().str.len().min() >= 3
    assert usable["rationale"].nunique() > 12, "a teacher that says the same of all reviews is none"
    own = usable[~usable["gold_conditioned"]]
    assert own["label_probability"].between(0.5, 1).all()
    summary = json.loads((demo[0] / "demo" / "annotations" / "summary.json").read_text())
    assert summary["calibration"]["used"] == "24 validation reviews with their gold labels"


def test_each_trial_is_a_nested_run_with_curve_config_and_student(demo: tuple[Path, str]) -> None:
    import mlflow

    uri = f"sqlite:///{demo[0] / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id])
    trials = [r for r in runs if r.data.tags["cotd.kind"] == "trial"]
    (study,) = [r for r in runs if r.data.tags["cotd.kind"] == "study"]
    assert len(trials) == 4
    for run in trials:
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == study.info.run_id
        assert [m.step for m in client.get_metric_history(run.info.run_id, "validation_accuracy")] == [4, 8]
        assert {"test_accuracy", "test_ci_low", "test_ci_high", "test_teacher_agreement", "best_validation_accuracy"} <= set(
            run.data.metrics
        )
        assert run.data.params["training.steps"] == "8"
        assert run.outputs.model_outputs, "the student is logged with its run"
        assert "config.json" in {a.path for a in client.list_artifacts(run.info.run_id)}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    student = mlflow.pyfunc.load_model("models:/cotd-student@champion")
    assert set(student.predict(["A warm and funny film."])["label"]) <= {"positive", "negative"}


@pytest.mark.slow
def test_a_second_demo_reuses_finished_work(demo: tuple[Path, str], environment: dict[str, str]) -> None:
    folders = sorted((demo[0] / "demo" / "trials").iterdir())
    before = {f: (f / "result.json").stat().st_mtime_ns for f in folders}
    shards = sorted((demo[0] / "completions").iterdir())
    output = run_demo(demo[0], environment)
    assert "4 trials: 4 done before, 0 to train" in output
    assert "It is the champion already" in output
    assert {f: (f / "result.json").stat().st_mtime_ns for f in sorted((demo[0] / "demo" / "trials").iterdir())} == before
    assert sorted((demo[0] / "completions").iterdir()) == shards
    assert marked(environment) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)])
def test_stopping_the_demo_leaves_nothing(tmp_path: Path, environment: dict[str, str], number: int, code: int) -> None:
    """Stopped while vLLM starts inside Ray: the moment with the most processes."""
    command = [*COTD, "demo", f"storage={tmp_path}", *SMALL]
    process = start(command, environment)
    assert process.stdout
    for line in process.stdout:
        if "rows to do" in line:
            break
    time.sleep(8)
    assert len(marked(environment)) > 3
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert marked(environment) == []


@pytest.fixture(scope="module")
def endpoint(demo: tuple[Path, str], environment: dict[str, str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`cotd serve` in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"sqlite:///{demo[0] / 'mlflow.db'}"
    command = [*COTD, "serve", "--port", str(port), "--tracking-uri", uri]
    process = start(command, environment)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def wait_until_healthy(url: str, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        try:
            if httpx.get(f"{url}/healthz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError("the endpoint did not come up")


def test_endpoint_answers_one_and_many_with_rationales(endpoint: tuple[str, Any], environment: dict[str, str]) -> None:
    url, _ = endpoint
    body = {"texts": ["A warm and funny film.", "word " * 500], "rationale": True}
    answer = httpx.post(f"{url}/v1/predict", json=body, trust_env=False, timeout=60).json()
    assert answer["model"] == {"name": "cotd-student", "version": "1"}
    short, long = answer["predictions"]
    assert not short["truncated"]
    assert long["truncated"]
    assert abs(sum(short["probabilities"].values()) - 1) < 1e-5
    assert short["score"] == max(short["probabilities"].values())
    assert isinstance(short["rationale"], str)
    for bad in ({"texts": []}, {"texts": [" "]}, {"texts": ["x"], "colour": 1}, {}):
        assert httpx.post(f"{url}/v1/predict", json=bad, trust_env=False).status_code == 422

    command = [*COTD, "predict", "--url", url, "--json", "A warm and funny film.", "Dull."]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    served = [json.loads(line) for line in lines]
    assert [row["text"] for row in served] == ["A warm and funny film.", "Dull."]


def test_local_student_and_endpoint_agree(demo: tuple[Path, str], endpoint: tuple[str, Any]) -> None:
    from cotd.student import Student
    from cotd.tracking import use_tracking

    use_tracking(f"sqlite:///{demo[0] / 'mlflow.db'}")
    student = Student.load("models:/cotd-student@champion")
    texts = ["A warm and funny film.", "Dull and lifeless.", "Not bad at all."]
    local = student.predict(texts)
    answer = httpx.post(f"{endpoint[0]}/v1/predict", json={"texts": texts}, trust_env=False).json()
    for ours, theirs in zip(local, answer["predictions"], strict=True):
        assert ours.label == theirs["label"]
        assert abs(ours.score - theirs["score"]) < 1e-4


def test_a_used_port_is_an_error_at_once(
    demo: tuple[Path, str], endpoint: tuple[str, Any], environment: dict[str, str]
) -> None:
    port = endpoint[0].rsplit(":", 1)[1]
    command = [*COTD, "serve", "--port", port, "--tracking-uri", f"sqlite:///{demo[0] / 'mlflow.db'}"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_ctrl_c_ends_the_endpoint_and_leaves_nothing(endpoint: tuple[str, Any], environment: dict[str, str]) -> None:
    _, process = endpoint
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert marked(environment) == []
