"""Studies on a Ray cluster that is joined, takes a submitted job, or loses a node in the middle."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cotd.errors import CotdError
from cotd.study.config import load_config
from pipelines.cluster.session import ray_session, require_shared, start_ray
from pipelines.sweep.plan import plan_study
from tests.processes import free_port, running, wait_for

REPOSITORY = Path(__file__).parents[3]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
TRAINING = {"optimizer": "adamw", "steps": 4, "batch_size": 8, "eval_every": 2, "warmup_steps": 0}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A Ray head that knows nothing of this checkout: its address, and that of its dashboard."""
    port, dashboard = free_port(), free_port()
    log = tmp_path_factory.mktemp("head") / "log"
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:  # sockets' paths have a limit
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
        command += [f"--dashboard-port={dashboard}", f"--temp-dir={short}", "--object-store-memory=200000000"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]  # jobs go through it; other Rays here have the usual one
        with running(command, log, RAY_USAGE_STATS_ENABLED="0", **TOKEN):
            wait_for(f"http://127.0.0.1:{dashboard}/api/version", log)
            yield f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"


@pytest.fixture
def study(write_study: Callable[..., Path], tiny_t5: Path) -> Path:
    grid = {"method": ["finetune"], "fraction": [0.5, 1.0], "size": ["mine"], "seed": [0]}
    return write_study(grid=grid, sizes={"mine": str(tiny_t5)}, training=TRAINING)


def ended(config: Path) -> dict[str, str]:
    """Trial id → MLflow status, of a study's trials that are done."""
    import mlflow

    study = load_config(config)
    plan = plan_study(study)
    assert plan.pending() == []
    client = mlflow.MlflowClient(study.tracking_uri(), study.tracking_uri())
    experiment = client.get_experiment_by_name(study.name)
    runs = client.search_runs([experiment.experiment_id], "tags.`cotd.kind` = 'trial'")
    assert len(runs) == len(plan.trials), "each trial has one run"
    return {r.data.tags["cotd.trial_id"]: r.info.status for r in runs}


# What a worker of the cluster says: where its cotd is from, and what is set for it.
ORIGIN = """
import os, ray
from pathlib import Path
from pipelines.cluster.session import ray_session, require_shared, start_ray

def origin():
    import cotd
    return cotd.__file__, os.environ.get("MALLOC_MMAP_THRESHOLD_")

with ray_session():
    require_shared(Path("/nowhere"))  # one node: nothing to share
    print(*ray.get(ray.remote(origin).remote()))
"""


@pytest.mark.slow
def test_a_sweep_joins_a_cluster_and_brings_its_code(head: tuple[str, str], study: Path, tmp_path: Path) -> None:
    environment = {**os.environ, **TOKEN, "RAY_ADDRESS": head[0], "PYTHONPATH": str(REPOSITORY)}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "2 trials, 2 trained now, 0 failed" in run("-m", "cotd.cli", "sweep", str(study))
    assert set(ended(study).values()) == {"FINISHED"}
    file, threshold = run("-c", ORIGIN).split()[-2:]
    assert "py_modules_files" in file
    assert int(threshold) > 0


@pytest.mark.slow
def test_a_submitted_job_writes_to_a_remote_mlflow(head: tuple[str, str], study: Path, tmp_path: Path) -> None:
    port = free_port()
    mlflow = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    mlflow += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--artifacts-destination", str(tmp_path / "kept")]
    with running(mlflow, tmp_path / "mlflow.log", MLFLOW_DISABLE_TELEMETRY="true"):
        wait_for(f"http://127.0.0.1:{port}/health", tmp_path / "mlflow.log")
        uri = f"tracking.uri=http://127.0.0.1:{port}"
        submit = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", head[1]]
        submit += ["--working-dir", str(REPOSITORY), "--", sys.executable, "-m", "cotd.cli", "sweep", str(study), uri]
        done = subprocess.run(submit, env={**os.environ, **TOKEN}, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 trials, 2 trained now, 0 failed" in done.stdout
        study.write_text(study.read_text() + f"tracking: {{uri: 'http://127.0.0.1:{port}'}}\n")
        assert set(ended(study).values()) == {"FINISHED"}
        assert list((tmp_path / "kept").rglob("model.safetensors")), "the student is with the server"


@pytest.mark.slow
def test_every_trial_finishes_although_a_node_dies(
    write_study: Callable[..., Path], tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from pipelines.sweep.run import sweep

    training = {**TRAINING, "steps": 120, "eval_every": 10}
    grid = {"method": ["finetune"], "fraction": [0.5, 1.0], "size": ["mine"], "seed": [0, 1]}
    path = write_study(grid=grid, sizes={"mine": str(tiny_t5)}, training=training, resources={"cpus": 1, "max_failures": 2})
    config = load_config(path)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:
        monkeypatch.setenv("RAY_TMPDIR", short)  # else another command on this machine would join these nodes
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27})
        try:
            nodes = [cluster.add_node(num_cpus=1, object_store_memory=2**27) for _ in range(2)]
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            killed: list[Any] = []

            def kill_one() -> None:
                """Kills a node as soon as each has written a checkpoint."""
                while len(list(config.directory.glob("trials/*/checkpoints/checkpoint-*"))) < 3:
                    time.sleep(0.1)
                cluster.remove_node(nodes[0], allow_graceful=False)
                killed.append(nodes[0])

            killer = threading.Thread(target=kill_one, daemon=True)
            with ray_session():
                assert len([n for n in ray.nodes() if n["Alive"]]) == 3
                with pytest.raises(CotdError, match="every node"):
                    require_shared(config.directory / "nowhere")
                killer.start()
                outcome = sweep(config)
            killer.join(10)
        finally:
            cluster.shutdown()
    assert killed, "the sweep ended before a node was killed"
    assert outcome == {**outcome, "trials": 4, "trained": 4, "failed": {}}
    assert set(ended(path).values()) == {"FINISHED"}


@pytest.mark.parametrize(("failures", "starts"), [(2, True), (3, False)])
def test_a_machine_too_busy_to_start_ray_in_time_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failures: int, starts: bool
) -> None:
    asked: list[int] = []

    def init(**arguments: Any) -> None:
        asked.append(1)
        if len(asked) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", init)
    with contextlib.nullcontext() if starts else pytest.raises(CotdError, match="Ray did not start in 3 attempts"):
        start_ray({}, verbose=False)
    assert len(asked) == 3
    assert "attempt 2 of 3" in capsys.readouterr().err
