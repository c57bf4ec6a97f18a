from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cotd.errors import CotdError
from cotd.storage.lease import Lease
from cotd.study.config import StudyConfig, load_config
from pipelines.cluster.lock import only_one, only_one_machine


def test_a_second_command_on_one_study_is_refused(tmp_path: Path) -> None:
    with only_one(tmp_path / "small", "sweeping small", "nothing is lost."):
        with pytest.raises(CotdError, match="another process is sweeping small") as refused:
            only_one(tmp_path / "small", "sweeping small", "nothing is lost.").__enter__()
        assert "nothing is lost." in str(refused.value)
        with only_one(tmp_path / "other", "sweeping other", ""):
            pass
    with only_one(tmp_path / "small", "sweeping small", ""):
        pass


@pytest.fixture
def shared(write_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    """A study on storage that machines share, which show life, and look for it, ten times a second."""
    monkeypatch.setenv("COTD_HOME", str(tmp_path / "home"))
    for name, seconds in {"BEAT_SECONDS": 0.1, "LOOK_SECONDS": 0.1}.items():
        monkeypatch.setattr(f"cotd.storage.lease.{name}", seconds)
    monkeypatch.setattr("pipelines.cluster.lock.PATIENCE_SECONDS", 1.0)
    return load_config(write_study(storage=f"file://{tmp_path}/bucket"))


def annotating(config: StudyConfig) -> Lease:
    """The lease of another machine that annotates the study."""
    lease = Lease(f"{config.remote}/leases/commands/annotate", "another machine")
    assert lease.acquire()
    return lease


def test_what_another_machine_is_at_is_refused_and_what_a_dead_one_was_at_is_taken_over(shared: StudyConfig) -> None:
    other = annotating(shared)
    with (
        other.renewing("annotate"),
        pytest.raises(CotdError, match=r"another machine is annotating small \(.+, process \d+\)\. Wait for it"),
        only_one_machine(shared, "annotate", "annotating small", "its completions are kept."),
    ):
        pass
    with only_one_machine(shared, "report", "reporting", ""), only_one_machine(shared, "annotate", "annotating small", ""):
        (shared.directory / "summary.json").write_text("{}")
    assert other.lost or not other.files.exists(other.root) or other._numbers() == []
    assert other.files.exists(f"{other.root}/../../../summary.json"), "it was pushed under the lease"


def test_a_command_that_is_taken_over_ends(shared: StudyConfig) -> None:
    def command() -> None:
        with only_one_machine(shared, "annotate", "annotating small", "its completions are kept."):
            assert Lease(f"{shared.remote}/leases/commands/annotate", "another machine").acquire(stale=0)
            time.sleep(10)

    with pytest.raises(CotdError, match="another machine is annotating small: it has taken over"):
        command()
