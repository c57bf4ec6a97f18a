from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from cotd.storage.working_copy import WorkingCopy, is_small
from tests.cotd.storage.folders import read, write

numbers = itertools.count()
contents = st.dictionaries(st.sampled_from(["a", "b/c", "b/d", "e/f/g"]), st.binary(max_size=4), max_size=4)


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


class Unreliable(LocalFileSystem):
    """A file system that cannot list some folders, as one that lost its connection; it inherits `find` like most."""

    protocol = "unreliable"
    cachable = False
    failing = ""

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> list[Any]:
        if self.failing and str(path).endswith(self.failing):
            raise ConnectionResetError("connection reset by peer")
        return super().ls(path, detail, **kwargs)


@pytest.fixture
def unreliable(monkeypatch: pytest.MonkeyPatch) -> type[Unreliable]:
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    monkeypatch.setattr(Unreliable, "failing", "")
    return Unreliable


@pytest.mark.parametrize("failing", ["there", "there/b"])
def test_a_failing_remote_deletes_nothing(tmp_path: Path, unreliable: type[Unreliable], failing: str) -> None:
    write(tmp_path / "there", {"a": b"1", "b/c": b"2"})
    copy = WorkingCopy(f"unreliable://{tmp_path}/there", tmp_path / "here")
    copy.pull()
    unreliable.failing = failing
    with pytest.raises(ConnectionResetError):
        copy.pull()
    assert read(tmp_path / "here") == {"a": b"1", "b/c": b"2"}


def test_what_is_gone_remotely_is_removed_unless_it_changed_here(tmp_path: Path, unreliable: type[Unreliable]) -> None:
    write(tmp_path / "there", {"a": b"1", "b/c": b"2", "b/d": b"3"})
    copy = WorkingCopy(f"unreliable://{tmp_path}/there", tmp_path / "here")
    copy.pull()
    write(tmp_path / "here", {"b/d": b"newer"})
    for name in ("b/c", "b/d"):
        (tmp_path / "there" / name).unlink()
    copy.pull()
    assert read(tmp_path / "here") == {"a": b"1", "b/d": b"newer"}
    copy.push()
    assert read(tmp_path / "there") == {"a": b"1", "b/d": b"newer"}


def test_pushing_survives_any_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = WorkingCopy._put, threading.Semaphore(0)

    def fail(self: WorkingCopy, file: Path, target: str) -> None:
        tried.release()
        raise RuntimeError("an SDK's own error")

    write(tmp_path / "here", {"a": b"1"})
    monkeypatch.setattr(WorkingCopy, "_put", fail)
    with WorkingCopy(f"memory://{tmp_path}", tmp_path / "here").pushing(0.01):
        assert tried.acquire(timeout=30)
        assert tried.acquire(timeout=30), "it tries again"
        monkeypatch.setattr(WorkingCopy, "_put", real)
    WorkingCopy(f"memory://{tmp_path}", tmp_path / "fresh").pull()
    assert read(tmp_path / "fresh") == {"a": b"1"}
