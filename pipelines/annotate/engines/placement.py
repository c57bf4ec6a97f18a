"""The CPUs, GPUs and threads that vLLM engines need of Ray's nodes: checks, reservations and vLLM's arguments all use these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cotd.errors import CotdError
from cotd.teachers.config import EngineConfig
from pipelines.cluster.resources import Bundle, grow, have_room, ray_nodes


@dataclass(frozen=True)
class Placement:
    """Where engines are.

    Attributes:
        bundles: what each of an engine's processes takes; in process, the one of the actor that starts them takes all.
        spread: whether an engine's processes may be on several nodes.
        threads: CPUs that each process of an engine may use.
    """

    bundles: list[Bundle]
    spread: bool
    threads: int

    @property
    def gpus(self) -> float:
        """GPUs of an engine."""
        return sum(bundle.get("GPU", 0) for bundle in self.bundles)

    @property
    def cpus(self) -> float:
        """CPUs that an engine reserves."""
        return sum(bundle["CPU"] for bundle in self.bundles)


def place_engines(config: EngineConfig, backend: str, use_gpu: bool) -> Placement:
    """How `config.replicas` engines are placed; an autoscaler is asked for nodes that hold them.

    Raises:
        CotdError: Ray's nodes cannot hold all engines at once. It would wait for that without end or word.
    """
    shards = config.shards
    if backend == "ray_data_llm":
        bundles: list[Bundle] = [{"CPU": 1.0, "GPU": 1.0} if use_gpu else {"CPU": 1.0}] * shards
    else:
        bundles = [{"CPU": 1.0, "GPU": float(shards)} if use_gpu else {"CPU": 1.0}]
    spread = backend == "ray_data_llm" and config.engine_kwargs.get("distributed_executor_backend") == "ray"
    placement = Placement(bundles, spread, 1)
    engine = bundles if spread else [{"CPU": placement.cpus, "GPU": placement.gpus}]
    grow(engine * config.replicas, f"{config.replicas} engines")
    nodes = ray_nodes()
    room = next(n for n in range(config.replicas, -1, -1) if have_room(engine * n, nodes))
    if room < config.replicas:
        gpus = f"{placement.gpus:g} GPUs and " if use_gpu else ""
        where = "" if spread else ", on one node"
        raise CotdError(
            f"teacher.engine.replicas asks for {config.replicas} engines of {gpus}{placement.cpus:g} CPUs each "
            f"(teacher.engine.tensor_parallel × pipeline_parallel{where}), and Ray has room for {room}. Ask for less, or "
            "join a larger cluster (RAY_ADDRESS)."
        )
    return Placement(bundles, spread, threads_of(config, engine[0], nodes))


def threads_of(config: EngineConfig, bundle: Bundle, nodes: Sequence[Bundle]) -> int:
    """Threads of each process of an engine: the engines are spread over the nodes that can hold one, and share a node's CPUs."""
    able = [node.get("CPU", 0) for node in nodes if have_room([bundle], [node])]
    engines_a_node = math.ceil(config.replicas / max(1, len(able)))
    return max(1, int(min(able, default=1) // engines_a_node // config.shards))
