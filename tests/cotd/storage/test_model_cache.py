"""Versions of a registered model that a server sends: downloaded once, and not kept for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from cotd.errors import CotdError
from cotd.storage import model_cache
from cotd.storage.model_cache import KEPT, download_student, fetch_version
from cotd.storage.tracking_store import use_tracking


def test_a_student_is_found_in_the_projects_own_store(
    tmp_path: Path, make_store: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `Student.load`, as by the commands, and after the project's folder was moved."""
    project, moved = tmp_path / "project", tmp_path / "moved"
    uri = make_store(project / "runs" / "mlflow.db")
    student = project / "runs" / "mlflow-artifacts" / "study" / "models" / "m"
    student.mkdir(parents=True)
    (student / "cotd.json").write_text("{}")
    client = mlflow.MlflowClient(uri, uri)
    client.create_experiment("study", (project / "runs" / "mlflow-artifacts" / "study").as_uri())
    client.create_registered_model("student")
    client.create_model_version("student", student.as_uri())
    client.set_registered_model_alias("student", "champion", "1")
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    monkeypatch.setattr(mlflow.tracking._model_registry.utils, "_registry_uri", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CotdError, match=r"no MLflow database '.*runs/mlflow\.db'"):
        download_student("models:/student@champion")
    assert not list(tmp_path.glob("**/mlflow.db"))[1:], "reading creates none"

    project.rename(moved)
    monkeypatch.chdir(moved)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    monkeypatch.setattr(mlflow.tracking._model_registry.utils, "_registry_uri", None)
    assert download_student("models:/student@champion") == moved / "runs" / "mlflow-artifacts" / "study" / "models" / "m"
    (moved / "runs" / "mlflow-artifacts" / "study").rename(tmp_path / "elsewhere")
    with pytest.raises(CotdError, match="moved or deleted"):
        download_student("models:/student@champion")


def test_a_version_is_downloaded_once_and_old_ones_go(
    tmp_path: Path, make_store: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = make_store(tmp_path / "mlflow.db")
    use_tracking(uri)
    client = mlflow.MlflowClient(uri, uri)
    client.create_registered_model("student")
    for number in range(KEPT + 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cotd.json").write_text(str(number))
        client.create_model_version("student", (tmp_path / str(number)).as_uri())
    assert fetch_version("models:/student/1") == tmp_path / "0", "a store of files is read in place"

    monkeypatch.setenv("COTD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(model_cache, "is_server", lambda store: True)
    client.set_registered_model_alias("student", "champion", "2")
    first = fetch_version("models:/student@champion")
    assert (first / "cotd.json").read_text() == "1"
    (tmp_path / "1" / "cotd.json").unlink()  # not asked for again
    assert fetch_version("models:/student/2") == first
    for version in range(2, KEPT + 3):
        assert (fetch_version(f"models:/student/{version}") / "cotd.json").read_text() == str(version - 1)
    kept = sorted(f.name.split("-")[0] for f in (tmp_path / "home" / "models" / "student").iterdir())
    assert kept == [str(version) for version in range(3, KEPT + 3)]
