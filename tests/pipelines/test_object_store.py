"""All stages of a study on object storage, on an S3 server: commands that are killed and given again, and a store that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest

from cotd.errors import CotdError
from cotd.storage.lease import Lease, LeaseLost
from cotd.storage.sync import TRIAL_LEASES
from cotd.study.config import load_config
from tests.object_store import ObjectStore
from tests.pipelines.annotate.fault_server import KEY, FaultServer
from tests.processes import marked_processes

pytestmark = pytest.mark.integration
COTD = [sys.executable, "-m", "cotd.cli"]
TRAINING = {"optimizer": "adamw", "steps": 12, "batch_size": 8, "eval_every": 2, "dropout": 0.0}
GRID = {"method": ["finetune"], "fraction": [1.0], "size": ["tiny"], "seed": [0, 1, 2, 3]}
TRIALS = 4

Machine = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def machine(s3: ObjectStore, make_store: Callable[[Path], str], tmp_path: Path) -> Iterator[Machine]:
    """Gives a command on a machine of its own: its cache, temporary files and MLflow are not another's."""
    mark = {"COTD_TEST_MARK": str(tmp_path)}

    def start(name: str, *arguments: str) -> subprocess.Popen[str]:
        place = tmp_path / name
        if not place.exists():
            (place / "tmp").mkdir(parents=True)
            make_store(place / "mlflow.db")
        environment = {
            **os.environ, **mark, "COTD_HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "RAY_TMPDIR": "/tmp",
            "TEACHER_KEY": KEY, "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db",
        }  # fmt: skip
        with (place / "log").open("a") as log:
            return subprocess.Popen([*COTD, *arguments], env=environment, stdout=log, stderr=log, text=True)

    yield start
    for process in marked_processes(mark):
        process.kill()


@pytest.fixture
def second_machine(make_store: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process a machine of its own, as `machine` does for a command."""
    monkeypatch.setenv("COTD_HOME", str(tmp_path / "second"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", make_store(tmp_path / "second" / "mlflow.db"))
    monkeypatch.setenv("TEACHER_KEY", KEY)


def finish(process: subprocess.Popen[str], log: Path) -> None:
    assert process.wait(240) == 0, log.read_text()[-4000:]


def wait_until(process: subprocess.Popen[str], reached: Callable[[], bool], log: Path) -> None:
    """Waits until a command has done so much."""
    deadline = time.monotonic() + 240
    while not reached():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def files_of(store: ObjectStore) -> set[str]:
    files, root = fsspec.core.url_to_fs(store.url)
    files.invalidate_cache()
    return {path.removeprefix(f"{root}/") for path in files.find(root)}


def test_of_two_machines_that_annotate_one_is_refused_and_what_is_killed_resumes_and_asks_nothing_twice(
    s3: ObjectStore, machine: Machine, second_machine: None, write_study: Callable[..., Path], tmp_path: Path
) -> None:
    from pipelines.annotate.run import annotate

    server = FaultServer()
    with server.serving() as url:
        api = {"base_url": url, "key_env": "TEACHER_KEY", "concurrency": 2, "timeout_seconds": 600}
        teacher: dict[str, Any] = {"model": "teacher-1", "strategy": "chain_of_thought", "api": api, "gold_conditioned": False}
        path = str(write_study(teacher=teacher, storage=s3.url))
        go_on = threading.Event()

        def hold(prompt: str, tries: int) -> None:
            if len(server.bodies) > 12:
                go_on.wait(240)

        server.fault = hold
        one = machine("one", "annotate", path, "--yes")
        wait_until(one, lambda: len(server.bodies) > 12, tmp_path / "one" / "log")
        with pytest.raises(CotdError, match=r"another machine is annotating small \("):
            annotate(load_config(path), yes=True)
        assert len(server.bodies) <= 14, "the second has asked nothing"
        kill(one)
        go_on.set()
        finish(machine("one", "annotate", path, "--yes"), tmp_path / "one" / "log")
        asked = len(server.bodies)
        annotate(load_config(path), yes=True)
        assert len(server.bodies) == asked, "another machine finds the completions"
    table = pd.read_parquet(f"{s3.url}/small/annotations/annotations.parquet")
    assert len(table) == 24
    assert table["example_id"].is_unique


def test_a_sweep_that_is_killed_resumes_and_other_machines_find_it_finished(
    s3: ObjectStore, machine: Machine, second_machine: None, study: str, tmp_path: Path
) -> None:
    from pipelines.promote import promote
    from pipelines.report.run import report
    from pipelines.sweep.run import sweep

    one = machine("one", "sweep", study)
    wait_until(one, lambda: len(s3.written("/result.json")) >= 1, tmp_path / "one" / "log")
    kill(one)
    finish(machine("one", "sweep", study), tmp_path / "one" / "log")
    config = load_config(study)
    assert sweep(config)["trained"] == 0
    report(config)
    assert promote(config, all_methods=True).moved
    assert_done_once(s3)
    assert {"small/report.json", "small/champion.json"} <= files_of(s3)


def test_two_sweeps_of_one_study_share_it_though_the_store_is_slow_and_fails(
    s3: ObjectStore, machine: Machine, study: str, tmp_path: Path
) -> None:
    s3.delay = lambda method, path: 0.2 if method == "PUT" else 0.0
    s3.fails = lambda method, path, number: method == "PUT" and number % 7 == 0
    sweeps = {name: machine(name, "sweep", study) for name in ("one", "two")}
    for name, process in sweeps.items():
        finish(process, tmp_path / name / "log")
    assert_done_once(s3)
    files, root = fsspec.core.url_to_fs(s3.url)
    for path in files.glob(f"{root}/small/trials/*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in files.cat_file(path).splitlines()]
        assert steps == list(range(2, 13, 2)), "one worker alone has written it"
    trained = [int((tmp_path / name / "log").read_text().rpartition(" trained now")[0].split()[-1]) for name in sweeps]
    assert sum(trained) == TRIALS
    assert min(trained) > 0


@pytest.mark.slow  # what each part of it does is in tests/cotd/storage/test_lease.py
def test_trials_of_a_sweep_that_shows_no_life_are_taken_over(
    s3: ObjectStore, second_machine: None, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.sweep.plan import plan_study
    from pipelines.sweep.run import sweep

    for name, seconds in {"PATIENCE_SECONDS": 3.0, "LOOK_SECONDS": 0.5}.items():
        monkeypatch.setattr(f"pipelines.sweep.share.{name}", seconds)
    config = load_config(study)
    dead = Lease(f"{config.remote}/{TRIAL_LEASES}/{plan_study(config).trials[0].id}", "another machine")
    assert dead.acquire()
    outcome = sweep(config)
    assert (outcome["trained"], outcome["failed"]) == (TRIALS, {})
    assert_done_once(s3)
    with pytest.raises(LeaseLost):
        dead.require()


@pytest.fixture
def study(s3: ObjectStore, write_study: Callable[..., Path], tiny_t5: Path) -> str:
    one_by_one = {"max_concurrent": 1}  # in one worker, whose imports take longer than all that it trains
    return str(write_study(grid=GRID, sizes={"tiny": str(tiny_t5)}, training=TRAINING, storage=s3.url, resources=one_by_one))


def assert_done_once(store: ObjectStore) -> None:
    """Every trial is done, whole, and once; nothing that is of use to nobody is left."""
    results = Counter(store.written("/result.json"))
    assert sorted(results.values()) == [1] * TRIALS
    files = files_of(store)
    assert sum(name.endswith("student/model.safetensors") for name in files) == TRIALS
    assert not [name for name in files if "checkpoint-" in name or "/tune" in name or "/leases/" in name]
