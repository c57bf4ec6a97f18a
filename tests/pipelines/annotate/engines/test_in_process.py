"""Engines that die, start slowly or not at all: what they leave is completed all the same, but for the row that they die of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from cotd.errors import CotdError
from cotd.teachers.config import EngineConfig
from cotd.teachers.requests import Request
from cotd.teachers.store import REFUSED_REASON, Completion
from pipelines.annotate.engines import in_process, ray_data_llm
from pipelines.annotate.engines.choose import teacher_engine
from pipelines.annotate.engines.in_process import reason_of
from pipelines.cluster.session import ray_session
from serve.app import serving
from serve.settings import Settings
from tests.pipelines.annotate.engines.stubs import Dies, Fragile, Stillborn, Unequal


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """The GPUs are Ray's word for it: there are none."""
    with ray_session(num_cpus=4, num_gpus=2):
        yield


def requests_of(prompts: list[str]) -> dict[str, Request]:
    return {p: Request("stub", "1", p, {"max_tokens": 1}) for p in prompts}


def assert_only_the_culprits_are_quarantined(requests: dict[str, Request], completions: dict[str, Completion]) -> None:
    assert len(completions) == len(requests)
    for prompt, request in requests.items():
        completion = completions[request.key]
        if "deadly" in prompt or "odd" in prompt:
            assert completion["error"].startswith("the engine failed at it: ")
            assert completion["finish_reason"] == REFUSED_REASON, "the next run's engine would die of it too"
        else:
            assert (completion["text"], completion["error"]) == (prompt, None)


@pytest.mark.integration
def test_only_the_row_that_kills_an_engine_is_quarantined(cluster: None) -> None:
    requests = requests_of([f"example {i}" + (" deadly" if i == 5 else " odd" if i == 9 else "") for i in range(16)])
    config = EngineConfig(batch_size=8, dtype="float32")
    with teacher_engine("stub", config, engine_class=Fragile) as complete:
        completions = {c["key"]: c for batch in complete(requests.values()) for c in batch}
    assert_only_the_culprits_are_quarantined(requests, completions)
    odd = next(r for p, r in requests.items() if "odd" in p)
    assert completions[odd.key]["error"].endswith("RuntimeError: CUDA error: an illegal memory access")
    with (
        teacher_engine("stub", config, engine_class=Stillborn) as complete,
        pytest.raises(CotdError, match=r"the teacher's engine does not start: .*no such model"),
    ):
        list(complete(requests.values()))


@pytest.mark.integration
def test_the_row_that_kills_the_engine_of_a_ray_data_pipeline_is_found_too(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying_pipeline(blocks: Any, *_: Any) -> Any:
        return blocks.map_batches(Dies, batch_size=None, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0, max_restarts=0)

    monkeypatch.setattr(ray_data_llm, "run_pipeline", dying_pipeline)
    monkeypatch.setattr(in_process, "InProcessEngine", Fragile)
    requests = requests_of([f"example {i}" + (" deadly" if i == 5 else "") for i in range(16)])
    with teacher_engine("stub", EngineConfig(batch_size=4, backend="ray_data_llm", dtype="float32")) as complete:
        completions = {c["key"]: c for batch in complete(requests.values()) for c in batch}
    assert_only_the_culprits_are_quarantined(requests, completions)


@pytest.mark.integration
def test_work_goes_to_the_engines_that_are_idle(cluster: None, tmp_path: Any) -> None:
    requests = requests_of([f"example {i}" for i in range(80)])
    config = EngineConfig(batch_size=2, replicas=2, dtype="float32")
    with teacher_engine(str(tmp_path / "first"), config, engine_class=Unequal) as complete:
        by = Counter(c["text"] for batch in complete(requests.values()) for c in batch)
    assert sum(by.values()) == 80
    assert len(by) == 2, "every engine is asked"
    assert max(by.values()) > 60, "the slow one has few"


@pytest.mark.integration
def test_what_no_node_has_room_for_is_refused_and_not_waited_for(cluster: None) -> None:
    for config, message in (
        (EngineConfig(tensor_parallel=4), r"1 engines of 4 GPUs and 4 CPUs each .*room for 0"),
        (EngineConfig(replicas=2, pipeline_parallel=2), r"2 engines of 2 GPUs and 2 CPUs each .*room for 1"),
    ):
        with pytest.raises(CotdError, match=message), teacher_engine("stub", config):
            pass
    with (
        pytest.raises(CotdError, match=r"3 replicas of 0\.6 GPUs: 2 GPUs hold 2"),
        serving(Settings(student="embedded:t5-mini"), replicas=3, gpus=0.6),
    ):
        pass


def test_the_reason_is_that_of_the_original_error() -> None:
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = ValueError("the first\nand more.")
    assert reason_of(wrapped) == "ValueError: the first"
