"""What engines take of a cluster is what Ray reserves, what there is room for, and what vLLM is told."""

from __future__ import annotations

from itertools import product

import pytest

from cotd.errors import CotdError
from cotd.teachers.config import EngineConfig
from pipelines.annotate.engines.placement import place_engines
from pipelines.annotate.engines.vllm import engine_arguments
from pipelines.cluster.resources import Bundle

HEAD: Bundle = {"CPU": 0.0}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[Bundle]:
    there: list[Bundle] = []
    monkeypatch.setattr("pipelines.cluster.resources.ray_nodes", lambda: there)
    monkeypatch.setattr("pipelines.annotate.engines.placement.ray_nodes", lambda: there)
    monkeypatch.setattr("pipelines.cluster.resources.growth_limits", dict)
    return there


@pytest.mark.parametrize("backend", ["ray_data_llm", "in_process"])
@pytest.mark.parametrize("use_gpu", [True, False])
def test_bundles_room_and_arguments_agree(nodes: list[Bundle], backend: str, use_gpu: bool) -> None:
    for tensor, pipeline, replicas in product((1, 2, 4), (1, 2), (1, 2, 5, 40)):
        config = EngineConfig(tensor_parallel=tensor, pipeline_parallel=pipeline, replicas=replicas, dtype="float32")
        shards = tensor * pipeline
        # Nodes of eight GPUs hold eight shards each, but no engine is on two nodes.
        node = {"CPU": 16.0, "GPU": 8.0} if use_gpu else {"CPU": 8.0 if backend == "ray_data_llm" else 8.0 / shards}
        needed = -(-replicas // (8 // shards))
        nodes[:] = [HEAD, *[node] * needed]
        placement = place_engines(config, backend, use_gpu)
        arguments = engine_arguments(config, use_gpu)
        assert arguments["tensor_parallel_size"] * arguments["pipeline_parallel_size"] == shards
        assert placement.gpus == (shards if use_gpu else 0)
        assert len(placement.bundles) == (shards if backend == "ray_data_llm" else 1)
        assert ("distributed_executor_backend" in arguments) == (shards > 1), "never Ray's own, which may take several nodes"
        assert placement.threads >= 1
        engines_a_node = -(-replicas // needed)
        assert placement.threads == 1 or placement.threads * shards * engines_a_node <= node["CPU"], (
            "of the node, not the cluster"
        )
        if needed > 1:
            nodes.pop()
            with pytest.raises(CotdError, match=f"replicas asks for {replicas} engines .*, on one node"):
                place_engines(config, backend, use_gpu)


def test_what_ray_would_not_know_of_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor_parallel_size: use engine\.tensor_parallel"):
        EngineConfig(engine_kwargs={"tensor_parallel_size": 4})
