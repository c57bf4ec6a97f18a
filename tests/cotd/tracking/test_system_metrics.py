from __future__ import annotations

import time
from pathlib import Path

import pytest

from cotd.tracking.system_metrics import sample_load
from cotd.utils.jsonl import read_rows


def test_sampling_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sample_load(tmp_path / "missing" / "load.jsonl", interval=0.01):
        time.sleep(0.05)
    with monkeypatch.context() as patch, sample_load(tmp_path / "broken.jsonl", interval=0.01):
        patch.setattr("cotd.tracking.system_metrics.gpu_load", lambda: 1 / 0)  # as a driver that has gone fails
    with pytest.raises(ZeroDivisionError), sample_load(tmp_path / "load.jsonl", interval=10):
        1 / 0  # noqa: B018
    assert len(read_rows(tmp_path / "load.jsonl")) == 1  # however short
