"""What a run has paid for is there for the next one, however it ended."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from cotd.teachers.store import CompletionStore, new_completion
from pipelines.annotate.files import AnnotationFiles
from pipelines.annotate.journal import Journal, recover
from pipelines.annotate.run import annotate
from tests.pipelines.annotate.fault_server import MakeStudy, Provider

KEYS = [f"{number:032x}" for number in range(3)]


def test_what_a_killed_run_noted_is_kept_and_what_goes_on_is_left_alone(tmp_path: Path) -> None:
    store = CompletionStore(tmp_path / "store")
    journal = Journal(tmp_path / "journal")
    for key in KEYS:
        journal.add(new_completion(key, text="fine", prompt_tokens=1, output_tokens=1))
    journal.kept([new_completion(KEYS[0])])
    recover(tmp_path / "journal", store)
    assert not store.find(KEYS), "its run goes on"
    fcntl.flock(journal._file, fcntl.LOCK_UN)  # as when its process is killed
    (path,) = (tmp_path / "journal").iterdir()
    path.write_bytes(path.read_bytes() + b'{"key": "cut o')
    recover(tmp_path / "journal", store)
    assert sorted(store.find(KEYS)) == KEYS[1:]
    assert not list((tmp_path / "journal").iterdir())


def test_what_the_store_did_not_take_is_not_asked_again(
    study: MakeStudy, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between a response and its shard."""

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(CompletionStore, "append", killed)
        with pytest.raises(Killed):
            annotate(study(), yes=True)
    assert len(provider[0].bodies) == 60
    assert annotate(study(), yes=True)["annotations"]["usable"] == 48
    assert len(provider[0].bodies) == 60 == len(provider[0].tries)
    assert not list(AnnotationFiles.of(study()).journal.iterdir())
