"""In-process engines that die: the rows beside the one that they die of are completed all the same."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from cotd.errors import CotdError
from cotd.teachers.config import EngineConfig
from cotd.teachers.requests import Request
from cotd.teachers.store import REFUSED_REASON, new_completion
from pipelines.annotate.engines.choose import teacher_engine
from pipelines.annotate.engines.in_process import reason_of
from pipelines.cluster.session import ray_session
from serve.app import serving
from serve.settings import Settings


@pytest.mark.slow
def test_only_the_row_that_kills_an_engine_is_quarantined() -> None:
    class Fragile:
        def __init__(self, arguments: dict[str, Any]):
            self.clean = True

        def complete(self, batch: dict[str, Any]) -> dict[str, list[str]]:
            assert self.clean, "after an error that nobody expected an engine is not asked again"
            for prompt in batch["prompt"]:
                if "deadly" in prompt:
                    os._exit(1)
                if "odd" in prompt:
                    self.clean = False
                    raise RuntimeError("CUDA error: an illegal memory access\nand a long trace")
            return {
                "completion": [
                    json.dumps(new_completion(k, text=p)) for k, p in zip(batch["key"], batch["prompt"], strict=True)
                ]
            }

    class Stillborn(Fragile):
        def __init__(self, arguments: dict[str, Any]):
            raise ValueError("no such model")

    prompts = [f"example {i}" + (" deadly" if i == 5 else " odd" if i == 9 else "") for i in range(16)]
    requests = {p: Request("stub", "1", p, {"max_tokens": 1}) for p in prompts}
    config = EngineConfig(batch_size=4)
    with ray_session():
        with teacher_engine("stub", config, engine_class=Fragile) as complete:
            completions = {a["key"]: a for batch in complete(requests.values()) for a in batch}
        with (
            teacher_engine("stub", config, engine_class=Stillborn) as complete,
            pytest.raises(CotdError, match=r"the teacher's engine does not start: .*no such model"),
        ):
            list(complete(requests.values()))
    assert len(completions) == 16
    for prompt, request in requests.items():
        completion = completions[request.key]
        if "deadly" in prompt or "odd" in prompt:
            assert completion["error"].startswith("the engine failed at it: ")
            assert completion["finish_reason"] == REFUSED_REASON, "the next run's engine would die of it too"
        else:
            assert (completion["text"], completion["error"]) == (prompt, None)
    odd = next(r for p, r in requests.items() if "odd" in p)
    assert completions[odd.key]["error"].endswith("RuntimeError: CUDA error: an illegal memory access")


@pytest.mark.integration
def test_what_no_node_has_room_for_is_refused_and_not_waited_for() -> None:
    """The GPUs are Ray's word for it: there are none."""
    with ray_session(num_cpus=4, num_gpus=2):
        for config, message in (
            (EngineConfig(tensor_parallel=4), r"1 engines of 4 GPUs and 4 CPUs each .*room for 0"),
            (EngineConfig(replicas=2, tensor_parallel=2), r"2 engines of 2 GPUs and 2 CPUs each .*room for 1"),
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
