"""The resources of trials, by the size of their student, and whether the cluster has room for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray.tune import PlacementGroupFactory

from cotd.errors import CotdError
from cotd.study.config import StudyConfig

Bundle = dict[str, float]  # what one process takes: {"CPU": 2, "GPU": 1}
NAMES = {"cpus": "CPU", "gpus": "GPU"}
# A resource of Ray's head node alone: what only starts and follows a trial's workers runs there, and takes no CPU from them.
ON_HEAD = {"node:__internal_head__": 0.001}


@dataclass(frozen=True)
class Needs:
    """The resources of a trial: each of its workers takes these CPUs and GPUs."""

    workers: int
    cpus: float
    gpus: float

    @property
    def bundles(self) -> list[Bundle]:
        return [{"CPU": self.cpus, "GPU": self.gpus}] * self.workers

    @property
    def threads(self) -> int:
        """Threads of each worker."""
        return max(1, int(self.cpus))

    def in_tune(self) -> PlacementGroupFactory:
        """What Tune reserves: next to nothing for a trial with several workers, as Ray Train places these."""
        return PlacementGroupFactory(self.bundles if self.workers == 1 else [ON_HEAD])


def needs_by_size(config: StudyConfig, sizes: Sequence[str]) -> dict[str, Needs]:
    """The resources of trials of each size.

    Raises:
        CotdError: the cluster can never hold a trial of some size; names all such sizes.
    """
    nodes = ray_nodes()
    has_gpus = any(node.get("GPU", 0) for node in nodes)
    needs, problems = {}, []
    for size in dict.fromkeys(sizes):
        block = config.resources.of(size)
        default_gpus = (0.25 if block.workers == 1 else 1.0) * has_gpus
        needs[size] = Needs(block.workers, block.cpus, default_gpus if block.gpus is None else block.gpus)
        problems += shortages(size, needs[size], config, nodes)
    if problems:
        raise CotdError(*problems)
    return needs


def shortages(size: str, needs: Needs, config: StudyConfig, nodes: Sequence[Bundle]) -> list[str]:
    """Why no trial of a size can ever run; empty where one can."""
    size_block = config.resources.sizes.get(size)
    process = f"{'each trial' if needs.workers == 1 else f'each of the {needs.workers} workers of a trial'} of size '{size}'"
    problems = []
    for key, name in NAMES.items():
        needed, most = getattr(needs, key), max((node.get(name, 0) for node in nodes), default=0)
        if needed > most:
            where = (
                f"resources.sizes.{size}.{key}" if size_block and getattr(size_block, key) is not None else f"resources.{key}"
            )
            problems.append(f"{process} asks for {needed:g} {name} ({where}) and no node of Ray has over {most:g}")
    if not problems and not have_room(needs.bundles[:1], nodes):
        problems = [f"{process} asks for {needs.cpus:g} CPU and {needs.gpus:g} GPU, and no node of Ray has both"]
    if not problems and not have_room(needs.bundles, nodes):
        room = next(n for n in range(needs.workers, 0, -1) if have_room(needs.bundles[:n], nodes))
        workers = f"{needs.workers} workers of {needs.cpus:g} CPU and {needs.gpus:g} GPU each"
        problems = [f"a trial of size '{size}' asks for {workers}, and Ray has room for {room} of them"]
    return [f"{problem}. Ask for less, or join a larger cluster (RAY_ADDRESS)." for problem in problems]


def ray_nodes() -> list[Bundle]:
    """The resources of each node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def have_room(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> bool:
    """Whether nodes that are otherwise empty hold all bundles at once, placed one by one, the largest first."""
    free = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda b: (b["GPU"], b["CPU"]), reverse=True):
        node = next((n for n in free if all(n.get(name, 0) >= amount - 1e-6 for name, amount in bundle.items())), None)
        if node is None:
            return False
        node.update({name: node.get(name, 0) - amount for name, amount in bundle.items()})
    return True
