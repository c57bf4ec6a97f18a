"""Errors for the person at the terminal."""

from __future__ import annotations

import errno
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from cotd.errors import CotdError, full_disk, nearest


def test_a_full_disk_is_recognised_whatever_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "not" / "made" / "yet"
    assert full_disk(OSError(errno.ENOSPC, "No space left on device"), there)
    assert full_disk(OSError(errno.EDQUOT, "Disk quota exceeded"), there)
    assert full_disk(RuntimeError("I/O error: No space left on device (os error 28)"), there)
    assert not full_disk(OSError(errno.EACCES, "Permission denied"), there)
    wrapped = ValueError("cannot save")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert full_disk(wrapped, there)
    # PyTorch does not say why: whether the disk is full does.
    unexplained = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    for free, full in ((2**40, False), (4096, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert full_disk(unexplained, there) is full


def test_several_problems_are_numbered_and_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(CotdError("no file", "no column")))
    assert error.problems == ("no file", "no column")
    assert str(error) == "  1. no file\n  2. no column"
    assert str(CotdError("no file")) == "no file"


def test_the_nearest_name_is_suggested() -> None:
    assert nearest("lable", ["text", "label"]) == " Did you mean 'label'?"
    assert nearest("stars", {"text": 1}) == ""
