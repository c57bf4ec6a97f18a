"""Commands and trials on remote storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cotd.storage.sync import sync_trial
from cotd.study.config import load_config
from tests.cotd.storage.folders import read, write


def test_a_trial_works_on_a_copy_of_its_own_and_continues_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{tmp_path}/bucket/study"
    driver = {"data/reviews.parquet": b"rows", "trials/t1/trial.json": b"{}"}
    write(tmp_path / "bucket" / "study", driver)
    params = {
        "storage": url, "directory": "/drivers/copy", "folder": "/drivers/copy/trials/t1",
        "examples": "/drivers/copy/data/reviews.parquet", "threads": 1, "annotations": None,
    }  # fmt: skip

    @sync_trial
    def killed(params: dict) -> None:  # type: ignore[type-arg]
        assert Path(params["examples"]).read_bytes() == b"rows"
        write(Path(params["folder"]), {"checkpoints/checkpoint-2/trainer_state.json": b"2", "metrics.jsonl": b"1\n"})
        raise RuntimeError("out of memory")

    @sync_trial
    def continued(params: dict) -> str:  # type: ignore[type-arg]
        folder = Path(params["folder"])
        assert (folder / "checkpoints/checkpoint-2/trainer_state.json").read_bytes() == b"2"
        (folder / "checkpoints/checkpoint-2/trainer_state.json").unlink()
        write(folder, {"result.json": b"{}"})
        return "done"

    for number, train in enumerate((killed, continued)):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / f"machine-{number}"))
        (tmp_path / f"machine-{number}").mkdir()
        if number == 0:
            with pytest.raises(RuntimeError):
                train(params)
        else:
            assert train(params) == "done"
    assert set(read(tmp_path / "bucket" / "study" / "trials" / "t1")) == {"trial.json", "metrics.jsonl", "result.json"}


def test_of_a_trials_workers_on_one_machine_each_has_a_copy_and_the_first_ones_is_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write(tmp_path / "bucket" / "study", {"data/reviews.parquet": b"rows", "trials/t1/trial.json": b"{}"})
    params = {"storage": f"file://{tmp_path}/bucket/study", "directory": "/copy", "folder": "/copy/trials/t1"}
    places = []

    @sync_trial
    def train(params: dict) -> None:  # type: ignore[type-arg]
        places.append(params["folder"])
        assert (Path(params["folder"]) / "trial.json").is_file()
        write(Path(params["folder"]), {f"{params['worker']}.txt": b"mine"})

    for worker in range(2):
        train({**params, "worker": worker})
    assert places[0] != places[1]
    assert set(read(tmp_path / "bucket" / "study" / "trials" / "t1")) == {"trial.json", "0.txt"}


@pytest.mark.slow
def test_a_sweep_on_it_is_found_finished_by_another_machine(
    write_study: Callable[..., Path], tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.promote import promote
    from pipelines.report.run import report
    from pipelines.sweep.run import sweep

    training = {"optimizer": "adamw", "steps": 4, "batch_size": 8, "eval_every": 2, "warmup_steps": 0}
    grid = {"method": ["finetune"], "fraction": [0.5, 1.0], "size": ["mine"], "seed": [0]}
    bucket = tmp_path / "bucket"
    path = write_study(grid=grid, sizes={"mine": str(tiny_t5)}, training=training, storage=f"file://{bucket}")
    for machine, trained in (("first", 2), ("second", 0)):
        monkeypatch.setenv("COTD_HOME", str(tmp_path / machine))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / machine / 'mlflow.db'}")
        config = load_config(path)
        outcome = sweep(config)
        assert (outcome["trials"], outcome["trained"], outcome["failed"]) == (2, trained, {})
        assert promote(config, all_methods=True).moved, "each machine's MLflow has the students"
        report(config)
    kept = read(bucket / "small")
    done = sorted(n for n in kept if n.endswith("result.json"))
    assert len(done) == 2
    assert {"report.json", "champion.json"} <= set(kept)
    assert not [n for n in kept if "checkpoint-" in n or n.startswith("tune/")]
    for name in done:
        assert name.replace("result.json", "student/model.safetensors") in kept
