"""Studies to annotate: by a double of the teacher, and by a provider that misbehaves."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cotd.study.config import StudyConfig, load_config
from tests.pipelines.annotate.fault_server import KEY, FaultServer, MakeStudy, Provider
from tests.tiny_models import write_tiny


@pytest.fixture(scope="session")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base model that is read in no time: its tokenizer is checked in each run, and nothing is trained."""
    return {"tiny": str(write_tiny("llama", tmp_path_factory.mktemp("base") / "llama", None))}


@pytest.fixture
def config(write_study: Callable[..., Path], sizes: dict[str, str]) -> StudyConfig:
    """60 examples: 24 to annotate, 24 to calibrate on, 12 to test the teacher on. The embedded teacher's tokenizer is used."""
    return load_config(write_study(teacher={"calibration": {"rows": 24}}, sizes=sizes))


@pytest.fixture
def hear_interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in a background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A fault server, and its URL."""
    server = FaultServer()
    with server.serving() as url:
        yield server, url


@pytest.fixture
def study(
    write_study: Callable[..., Path], sizes: dict[str, str], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> MakeStudy:
    """A study of 60 examples whose teacher is the provider: 12 test, 24 train, each of these also given gold."""
    monkeypatch.setenv("TEACHER_KEY", KEY)

    def make(*overrides: str) -> StudyConfig:
        api = {
            "base_url": provider[1],
            "key_env": "TEACHER_KEY",
            "concurrency": 8,
            "backoff_seconds": 0.01,
            "timeout_seconds": 10,  # a busy machine may stand still for seconds
        }
        teacher = {"model": "teacher-1", "strategy": "chain_of_thought", "api": api}
        return load_config(write_study(teacher=teacher, sizes=sizes), list(overrides))

    return make
