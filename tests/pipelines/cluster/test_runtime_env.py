"""What travels to a joined cluster, and what must not stay in a submitted job's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cotd.errors import CotdError
from cotd.study.config import load_config
from pipelines.cluster.runtime_env import JOB, PACKAGES, require_lasting, runtime_env
from pipelines.cluster.session import ray_session


@pytest.mark.parametrize("address", ["ray://head:10001", "http://127.0.0.1:8265"])
def test_an_address_that_a_driver_cannot_join_is_refused_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(CotdError, match="ray job submit"), ray_session():
        raise AssertionError("joined")


def test_code_travels_to_a_cluster_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime_env("local", {"A": "1"}) is None
    joined = runtime_env("auto", {"A": "1"})
    assert joined
    assert {Path(p).name for p in joined["py_modules"]} == set(PACKAGES)
    assert joined["env_vars"] == {"A": "1"}
    # A job that has the checkout as its working folder, and a variable of its own.
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"working_dir": "gcs://x.zip", "env_vars": {"A": "2"}}}))
    assert runtime_env("10.0.0.1:6379", {"A": "1", "B": "1"}) == {"env_vars": {"B": "1"}}
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": None}))
    assert "py_modules" in (runtime_env("10.0.0.1:6379", {}) or {})


def test_results_are_not_left_in_a_jobs_folder(
    write_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "working_dir_files" / "_ray_pkg_0"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    path = write_study()
    require_lasting(load_config(path))
    with pytest.raises(CotdError, match="Name a folder that every node shares"):
        require_lasting(load_config(path, ["storage=runs"]))
    with pytest.raises(CotdError, match="Name a server"):
        require_lasting(load_config(path, ["storage=memory://bucket/runs"]))
    require_lasting(load_config(path, ["storage=memory://bucket/runs", "tracking.uri=http://mlflow:5000"]))
