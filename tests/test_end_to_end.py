"""The real path, tiny: real vLLM with the real embedded teacher, Ray Data, Ray Tune, SQLite MLflow, Ray Serve over HTTP.

The larger student alone has some thousand parameters in place of the 135 million of `make demo`: all else about it is the same.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipelines.demo import SHOWN
from tests.pipelines.annotate.fault_server import FaultServer
from tests.processes import marked
from tests.tiny_models import write_tiny

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).parent.parent
COTD = [sys.executable, "-m", "cotd.cli"]
METHODS = ["finetune", "cot_labelled"]
SMALL = [
    "data.train_rows=24", "data.validation_rows=24", "data.test_rows=24", "teacher.calibration.rows=24",
    f"grid.method=[{','.join(METHODS)}]", "grid.fraction=[0.5,1.0]", "training.steps=8", "training.eval_every=4", "tracking.models=5",
    "grid.include=[{method: [cot_labelled], fraction: [1.0], size: [smol], training: {steps: [20], eval_every: [20]}}]",
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
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_") and k != "OMP_NUM_THREADS"}
    return {**inherited, **offline, "COTD_TEST_MARK": uuid.uuid4().hex}


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Starts a command that hears Ctrl-C, even where these tests run in a background job, which does not."""

    def hear_interrupts() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=hear_interrupts
    )


def run_demo(storage: Path, environment: dict[str, str]) -> str:
    larger = storage.parent / "larger"
    if not larger.exists():
        write_tiny("llama", larger, None)
    command = [*COTD, "demo", f"storage={storage}", *SMALL, f"sizes={{tiny: embedded:t5-mini, smol: {larger}}}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> tuple[Path, str]:
    """The storage folder and the output of a finished demo."""
    storage = tmp_path_factory.mktemp("demo") / "runs"
    return storage, run_demo(storage, environment)


def test_report_holds_trials_teacher_champion_and_latency(demo: tuple[Path, str], environment: dict[str, str]) -> None:
    report = json.loads((demo[0] / "demo" / "report.json").read_text())
    tiny = {(m, f, "tiny") for m in METHODS for f in (0.5, 1.0)}
    assert {(t["method"], t["fraction"], t["size"]) for t in report["trials"]} == tiny | {("cot_labelled", 1.0, "smol")}
    for trial in report["trials"]:
        assert trial["ci_low"] <= trial["accuracy"] <= trial["ci_high"]
        assert trial["n_test"] == 24
    assert report["teacher"]["n"] == 24
    assert (report["champion"]["method"], report["champion"]["size"]) == ("cot_labelled", "tiny")
    assert report["serving"]["requests"] == 100
    assert 0 < report["serving"]["p50_ms"] <= report["serving"]["p95_ms"]
    rungs = {rung["name"]: rung for rung in report["ladder"]}
    served = [rungs[name] for name in ("tiny, cot_labelled", "cascade", "smol, cot_labelled")]
    assert rungs["cascade"]["parameters"] == served[0]["parameters"] + served[2]["parameters"]
    assert all(rung["ci_low"] <= rung["accuracy"] <= rung["ci_high"] for rung in served)
    assert all(0 < rung["median_ms"] <= rung["p95_ms"] for rung in served)
    assert (demo[0] / "demo" / "accuracy.png").stat().st_size > 10_000
    assert marked(environment) == []


def test_annotations_are_the_teachers_own_words(demo: tuple[Path, str]) -> None:
    table = pd.read_parquet(demo[0] / "demo" / "annotations" / "annotations.parquet")
    assert table["example_id"].nunique() == 24
    assert set(table["gold_conditioned"]) == {True, False}
    usable = table[table["error"].isna()]
    assert len(usable) >= 40
    assert usable["rationale"].str.split().str.len().min() >= 3
    assert usable["rationale"].nunique() > 12, "a teacher that says the same of all examples is none"
    own = usable[~usable["gold_conditioned"]]
    assert own["label_probability"].between(0.5, 1).all()
    summary = json.loads((demo[0] / "demo" / "annotations" / "summary.json").read_text())
    assert summary["calibration"]["used"] == "24 validation examples with their gold labels"


def test_each_trial_is_a_nested_run_with_curve_config_and_student(demo: tuple[Path, str]) -> None:
    import mlflow

    uri = f"sqlite:///{demo[0] / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id])
    trials = [r for r in runs if r.data.tags["cotd.kind"] == "trial"]
    (study,) = [r for r in runs if r.data.tags["cotd.kind"] == "study"]
    assert len(trials) == 5
    for run in trials:
        steps = run.data.params["training.steps"]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == study.info.run_id
        assert [m.step for m in client.get_metric_history(run.info.run_id, "validation_accuracy")] == {
            "8": [4, 8],
            "20": [20],
        }[steps]
        assert {"test_accuracy", "test_ci_low", "test_ci_high", "test_teacher_agreement", "best_validation_accuracy"} <= set(
            run.data.metrics
        )
        assert run.data.metrics["system/process_memory_usage_megabytes"] > 100
        assert run.outputs.model_outputs, "the student is logged with its run"
        assert "config.json" in {a.path for a in client.list_artifacts(run.info.run_id)}


def test_what_was_served_is_what_the_champion_says(demo: tuple[Path, str]) -> None:
    """The demo asks its cascade over HTTP, and prints what it was answered. More of `cotd serve` is in tests/serve/test_app.py."""
    from cotd.storage.tracking_store import use_tracking
    from cotd.students.student import Student

    use_tracking(f"sqlite:///{demo[0] / 'mlflow.db'}")
    student = Student.load("models:/cotd-student@champion", device="cpu")
    (larger,) = [f for f in (demo[0] / "demo" / "trials").glob("*/student") if '"smol"' in (f / "cotd.json").read_text()]
    escalated = Student.load(larger, device="cpu").predict(SHOWN)
    for text, small, large in zip(SHOWN, student.predict(SHOWN), escalated, strict=True):
        (line,) = [line for line in demo[1].splitlines() if line.endswith(text)]
        by_larger = "by the larger student" in line
        prediction = large if by_larger else small
        label, score, *_ = line.split()
        assert label == prediction.label
        rounding = 5 if by_larger else 0.06  # it is served in bfloat16 where the machine multiplies it; a decimal is printed
        assert float(score.rstrip("%")) == pytest.approx(100 * prediction.score, abs=rounding)
    assert demo[1].count("its rationale: ") == len(SHOWN)


@pytest.mark.slow
def test_a_second_demo_reuses_finished_work(demo: tuple[Path, str], environment: dict[str, str]) -> None:
    folders = sorted((demo[0] / "demo" / "trials").iterdir())
    before = {f: (f / "result.json").stat().st_mtime_ns for f in folders}
    shards = sorted((demo[0] / "completions").iterdir())
    output = run_demo(demo[0], environment)
    assert "5 trials: 5 done before, 0 to train" in output
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
    deadline = time.monotonic() + 120
    while not any("InProcessEngine" in command for command in marked(environment)):
        assert time.monotonic() < deadline, "no engine was started"
        time.sleep(0.2)
    time.sleep(2)
    assert len(marked(environment)) > 3
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert marked(environment) == []


def answer_about(prompt: str) -> str:
    """What a good teacher would write about the last of the prompt's pairs."""
    hypothesis = prompt.rpartition("hypothesis: ")[2]
    label = "Contradiction" if "not" in hypothesis else "Entailment" if "outdoors" in hypothesis else "Neutral"
    return json.dumps({"rationale": "What the premise says decides about the hypothesis.", "label": label})


def test_three_labels_over_two_fields(tmp_path: Path, tiny_t5: Path, environment: dict[str, str]) -> None:
    """Annotated by chain of thought through an endpoint, swept, promoted, predicted: each by its command."""
    hypotheses = {"{} is outdoors.": "entailment", "{} is not outdoors.": "contradiction", "{} has a sister.": "neutral"}
    rows = [
        {"premise": f"{name} is {doing}.", "hypothesis": text.format(name), "gold": label, "split": split}
        for name, split in {"Ada": "train", "Ben": "train", "Cleo": "validation", "Dan": "test"}.items()
        for doing in ("climbing a tree", "fishing in a river", "walking along the beach", "planting a hedge")
        for text, label in hypotheses.items()
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "pairs.csv", index=False)
    store = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"

    def run(*arguments: str) -> str:
        command = [*COTD, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    teacher = FaultServer()
    teacher.write = answer_about
    with teacher.serving() as url:
        study = {
            "name": "pairs",
            "task": "nli",
            "data": {
                "source": "pairs.csv",
                "input": "premise: {premise} hypothesis: {hypothesis}",
                "columns": {"label": "gold", "split": "split"},
            },
            "teacher": {"model": "teacher-1", "strategy": "chain_of_thought", "api": {"base_url": url, "key_env": None}},
            "sizes": {"tiny": str(tiny_t5)},
            "grid": {"method": ["cot_unlabelled"], "fraction": [1.0], "size": ["tiny"], "seed": [0]},
            "training": {"steps": 2, "batch_size": 4, "eval_every": 2, "max_input_tokens": 64, "max_target_tokens": 16},
            "tracking": {"uri": store},
        }
        (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(study))
        run("annotate", "pairs.yaml", "--yes")
    annotations = pd.read_parquet(tmp_path / "runs" / "pairs" / "annotations" / "annotations.parquet")
    own = annotations[annotations["gold_conditioned"].eq(False)]
    assert own["label"].value_counts().to_dict() == dict.fromkeys(hypotheses.values(), 8)
    assert any("premise: Ada is climbing a tree. hypothesis: Ada has a sister." in prompt for prompt in teacher.prompts)

    assert "1 trials, 1 trained now, 0 failed" in run("sweep", "pairs.yaml")
    run("promote", "pairs.yaml")
    text = "premise: Eve is skiing. hypothesis: Eve is outdoors."
    (row,) = json.loads(run("predict", text, "--local", "--tracking-uri", store, "--rationale", "--json"))
    assert set(row["probabilities"]) == {"entailment", "neutral", "contradiction"}
    assert row["label"] == max(row["probabilities"], key=row["probabilities"].__getitem__)
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert marked(environment) == []
