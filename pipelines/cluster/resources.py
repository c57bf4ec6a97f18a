"""The resources of trials, by the size of their student, and whether the cluster has room for them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cotd.errors import CotdError
from cotd.progress import say
from cotd.study.config import StudyConfig

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory  # which takes seconds to import

Bundle = dict[str, float]  # what one process takes: {"CPU": 2, "GPU": 1}
NAMES = {"cpus": "CPU", "gpus": "GPU"}
# A resource of Ray's head node alone: what only starts and follows a trial's workers runs there, and takes no CPU from them.
ON_HEAD = {"node:__internal_head__": 0.001}
GROWTH_SECONDS = 1800.0  # for an autoscaler to add a node: a cloud may take minutes, and pulls an image then


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
        from ray.tune import PlacementGroupFactory

        return PlacementGroupFactory(self.bundles if self.workers == 1 else [ON_HEAD])


def needs_by_size(config: StudyConfig, sizes: Sequence[str]) -> dict[str, Needs]:
    """The resources of trials of each size; an autoscaler is asked for nodes that hold one of each.

    Raises:
        CotdError: the cluster can never hold a trial of some size; names all such sizes.
    """
    needs, problems = {}, []
    default_gpus = 1.0 if has_gpus() else 0.0
    for size in dict.fromkeys(sizes):
        block = config.resources.of(size)
        needs[size] = Needs(block.workers, block.cpus, default_gpus if block.gpus is None else block.gpus)
        grow(needs[size].bundles, f"a trial of size '{size}'")
        problems += shortages(size, needs[size], config, ray_nodes())
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
    for bundle in sorted(bundles, key=lambda b: (b.get("GPU", 0), b["CPU"]), reverse=True):
        node = next((n for n in free if all(n.get(name, 0) >= amount - 1e-6 for name, amount in bundle.items())), None)
        if node is None:
            return False
        node.update({name: node.get(name, 0) - amount for name, amount in bundle.items()})
    return True


def has_gpus() -> bool:
    """Whether any node has a GPU, or may be added by an autoscaler that has one."""
    return any(node.get("GPU", 0) for node in ray_nodes()) or growth_limits().get("GPU", 0) > 0


def growth_limits() -> Bundle:
    """The most of each resource that the cluster's autoscaler lets it have; empty without an autoscaler."""
    from ray._private.state import state  # no public function tells; Ray Data and Train ask this one

    return dict(state.get_max_resources_from_cluster_config() or {})


def grow(bundles: Sequence[Bundle], what: str) -> None:
    """Has an autoscaler, if there is one that can, add nodes until they hold all bundles at once, and waits for them.

    Where nodes are too few, or small, without one, this returns at once; so it does when half an hour has passed.

    Args:
        what: is to have room, for the message.
    """
    limits = growth_limits()
    asked = [{name: amount for name, amount in bundle.items() if amount} for bundle in bundles]
    total = {name: sum(bundle.get(name, 0) for bundle in asked) for bundle in asked for name in bundle}
    if have_room(bundles, ray_nodes()) or any(amount > limits.get(name, 0) for name, amount in total.items()):
        return
    from ray.autoscaler.sdk import request_resources

    say(f"  waiting for Ray's autoscaler to add nodes with room for {what}, {GROWTH_SECONDS / 60:.0f} min at most")
    deadline = time.monotonic() + GROWTH_SECONDS
    request_resources(bundles=asked)
    try:
        while not have_room(bundles, ray_nodes()) and time.monotonic() < deadline:
            time.sleep(1)
    finally:
        request_resources(bundles=[])  # what then runs there keeps the nodes
