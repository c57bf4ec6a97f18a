from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from cotd.errors import full_disk


def test_a_full_disk_is_known_by_what_each_library_says_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "not" / "made" / "yet"
    assert full_disk(OSError(errno.ENOSPC, "No space left on device"), there)
    assert full_disk(OSError(errno.EDQUOT, "Disk quota exceeded"), there)
    assert full_disk(RuntimeError("I/O error: No space left on device (os error 28)"), there)
    assert not full_disk(OSError(errno.EACCES, "Permission denied"), there)
    wrapped = ValueError("cannot save")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert full_disk(wrapped, there)
    # PyTorch does not say why: whether the disk is full does.
    torchs = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    for free, full in ((2**40, False), (4096, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert full_disk(torchs, there) is full
