"""Versions of a registered model that a server sends: downloaded once, and not kept for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from cotd.storage import model_cache
from cotd.storage.model_cache import KEPT, fetch_version
from cotd.storage.tracking_store import use_tracking


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
