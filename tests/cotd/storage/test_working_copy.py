"""Storage that is no folder: working copies, and a study on one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.errors import CotdError
from cotd.storage.working_copy import MANIFEST, WorkingCopy, is_small, sync_trial
from cotd.study.config import load_config

numbers = itertools.count()
contents = st.dictionaries(st.sampled_from(["a", "b/c", "b/d", "e/f/g"]), st.binary(max_size=4), max_size=4)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST}


@given(contents, contents)
@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_copy_elsewhere_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, protocol: str, first: dict[str, bytes], second: dict[str, bytes]
) -> None:
    base = tmp_path_factory.getbasetemp() / f"copies-{protocol}-{next(numbers)}"
    url = f"{protocol}://{base / 'there'}"
    one, other = WorkingCopy(url, base / "one"), WorkingCopy(url, base / "other")
    for change in (first, second):
        write(base / "one", change)
        one.push()
        other.pull()
        assert read(base / "other") == read(base / "one")
    assert read(WorkingCopy(url, base / "other").folder) == {**first, **second}


def test_only_changes_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{tmp_path}"
    write(tmp_path / "here", {"a": b"1", "b": b"2"})
    copy = WorkingCopy(url, tmp_path / "here")
    copy.push()
    sent: list[str] = []
    monkeypatch.setattr(WorkingCopy, "_put", lambda self, file, target: sent.append(file.name))
    WorkingCopy(url, tmp_path / "here").push()  # another process
    assert sent == []
    write(tmp_path / "here", {"b": b"33"})
    copy.push()
    assert sent == ["b"]


def test_a_lost_copy_loses_nothing(tmp_path: Path) -> None:
    url = f"memory://{tmp_path}"
    trial = {"result.json": b"{}", "checkpoints/checkpoint-2/trainer_state.json": b"{}", "error.txt": b"x"}
    write(tmp_path / "here", trial)
    copy = WorkingCopy(url, tmp_path / "here")
    copy.push()
    for name in trial:
        (tmp_path / "here" / name).unlink()
    copy.push()
    fresh = WorkingCopy(url, tmp_path / "fresh")
    fresh.pull()
    assert read(tmp_path / "fresh") == {"result.json": b"{}"}, "only what is meant to pass has gone"


def test_results_come_last_and_checkpoints_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    real = WorkingCopy._put
    monkeypatch.setattr(WorkingCopy, "_put", lambda self, f, t: (sent.append(f.name), real(self, f, t)))
    half, whole = "checkpoints/checkpoint-4/", "checkpoints/checkpoint-2/"
    names = ["result.json", "student/model.safetensors", half + "optimizer.pt", whole + "trainer_state.json", whole + "z.pt"]
    write(tmp_path / "here", dict.fromkeys(names, b"1"))
    with WorkingCopy(f"memory://{tmp_path}", tmp_path / "here").pushing(60):
        pass
    assert sent == ["z.pt", "model.safetensors", "trainer_state.json", "result.json"]
    assert [n for n in names if is_small(n)] == ["result.json"]


def test_a_trial_works_on_a_copy_of_its_own_and_goes_on_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{tmp_path}/bucket/study"
    driver = {"data/reviews.parquet": b"rows", "trials/t1/trial.json": b"{}"}
    write(tmp_path / "bucket" / "study", driver)
    params = {
        "storage": url, "directory": "/drivers/copy", "folder": "/drivers/copy/trials/t1",
        "reviews": "/drivers/copy/data/reviews.parquet", "threads": 1, "annotations": None,
    }  # fmt: skip

    @sync_trial
    def killed(params: dict) -> None:  # type: ignore[type-arg]
        assert Path(params["reviews"]).read_bytes() == b"rows"
        write(Path(params["folder"]), {"checkpoints/checkpoint-2/trainer_state.json": b"2", "metrics.jsonl": b"1\n"})
        raise RuntimeError("out of memory")

    @sync_trial
    def goes_on(params: dict) -> str:  # type: ignore[type-arg]
        folder = Path(params["folder"])
        assert (folder / "checkpoints/checkpoint-2/trainer_state.json").read_bytes() == b"2"
        (folder / "checkpoints/checkpoint-2/trainer_state.json").unlink()
        write(folder, {"result.json": b"{}"})
        return "done"

    for number, train in enumerate((killed, goes_on)):
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


def test_a_protocol_without_its_package_is_named(write_study: Callable[..., Path]) -> None:
    with pytest.raises(CotdError, match=r"storage: storage 'nope://bucket/runs' cannot be used"):
        load_config(write_study(), ["storage=nope://bucket/runs"])
    study = load_config(write_study(), ["storage=memory://bucket/runs"])
    assert study.remote == "memory://bucket/runs/small"
    assert study.directory.is_absolute()
    assert fsspec.core.url_to_fs(study.remote)[1] == "/bucket/runs/small"


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
