"""Annotation through Ray Data and actors, with an engine that thinks nothing: what Ray and kills may not change."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from cotd.study.config import StudyConfig, load_config
from cotd.teachers.config import EngineConfig
from pipelines.annotate.engines.choose import teacher_engine
from pipelines.annotate.files import AnnotationFiles
from pipelines.annotate.run import annotate
from pipelines.cluster.session import ray_session
from tests.benchmarks.annotate.stub import StubEngine, write_study
from tests.processes import marked_processes

BLOCK = 16


class NotedEngine(StubEngine):
    """Takes a second for fifty rows, and notes the keys of what it completes in the file that the variable KEYS names."""

    SECONDS_A_ROW = 0.02

    def complete(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        with open(os.environ["KEYS"], "a") as file:
            file.write("".join(f"{key}\n" for key in batch["key"]))
        return super().complete(batch)


def run(config: StudyConfig, engine: type, replicas: int = 1) -> dict[str, Any]:
    settings = EngineConfig(replicas=replicas, batch_size=BLOCK)
    with teacher_engine("stub", settings, engine_class=engine) as complete:
        return annotate(config, complete)


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_replicas(tmp_path: Path, embedded_student: Path) -> None:
    results = {}
    with ray_session(num_cpus=4):
        for replicas in (1, 3):
            config = write_study(tmp_path / str(replicas), train=100, held_out=20, samples=2, temperature=0.7)
            summary = run(config, StubEngine, replicas)
            table = pd.read_parquet(AnnotationFiles.of(config).annotations)
            results[replicas] = summary["digest"], summary["teacher"], summary["usage"], table
    assert results[1][:3] == results[3][:3]
    pd.testing.assert_frame_equal(results[1][3], results[3][3])
    assert len(results[1][3]) == results[1][3]["error"].isna().sum() > 200


@pytest.mark.slow
def test_a_killed_driver_loses_what_is_in_flight_at_most(tmp_path: Path, embedded_student: Path) -> None:
    """`kill -9` three times, through Ray: what is kept is not asked again, nothing is lost or there twice."""
    config = write_study(tmp_path, train=400, held_out=20)
    keys = tmp_path / "keys.txt"
    keys.touch()
    environment = {**os.environ, "KEYS": str(keys), "COTD_TEST_MARK": uuid.uuid4().hex}
    command = [sys.executable, "-m", "tests.pipelines.annotate.engines.test_ray", str(tmp_path / "study.yaml")]

    def asked() -> int:
        return len(keys.read_text().split())

    for _ in range(3):
        before = asked()
        driver = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
        while driver.poll() is None and asked() < before + 5 * BLOCK:
            time.sleep(0.05)
        assert driver.poll() is None, "it was to be killed while it works"
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        for left in marked_processes(environment):  # Ray's, which no one ends now
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL, timeout=120)
    table = pd.read_parquet(AnnotationFiles.of(config).annotations)
    assert not table.duplicated(["example_id", "gold_conditioned", "sample"]).any()
    own = table[table["error"].isna() & ~table["gold_conditioned"]]
    assert own["example_id"].nunique() == 400
    twice = sum(n - 1 for n in Counter(keys.read_text().split()).values())
    # The engine works on one block, another waits, and one or two are on their way back.
    assert twice <= 3 * 4 * BLOCK


if __name__ == "__main__":
    with ray_session(num_cpus=2):
        run(load_config(sys.argv[1]), NotedEngine)
