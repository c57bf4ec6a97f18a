"""`cotd push` by what it can name as a source; what needs a hub is in `test_hub.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cotd.cli.app import main
from cotd.study.config import StudyConfig

Command = Callable[..., Path]


@pytest.fixture
def dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `cotd push SOURCE me/mine --dry-run`; returns the folder that it wrote."""

    def run(source: str, *arguments: str) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["cotd", "push", source, "me/mine", *arguments, "--dry-run"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return tmp_path / "runs/push/me/mine"

    return run


@pytest.mark.integration  # MLflow takes seconds to import
def test_a_champion(dry_run: Command, trained: Path, tmp_path: Path, make_store: Callable[[Path], str]) -> None:
    import mlflow

    uri = make_store(tmp_path / "mlflow.db")
    client = mlflow.MlflowClient(uri, uri)
    client.create_registered_model("cotd-student")
    version = client.create_model_version("cotd-student", trained.as_uri()).version
    client.set_registered_model_alias("cotd-student", "champion", version)
    folder = dry_run("models:/cotd-student@champion", "--tracking-uri", uri)
    assert (folder / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_a_study_by_its_yaml(dry_run: Command, annotated: StudyConfig, tmp_path: Path) -> None:
    assert (dry_run(str(tmp_path / "study.yaml"), "name=small") / "annotations.parquet").is_file()


def test_a_study_by_its_folder(dry_run: Command, annotated: StudyConfig) -> None:
    assert (dry_run(str(annotated.directory)) / "annotations.parquet").is_file()
