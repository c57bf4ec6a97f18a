"""What trials ask of Ray, by the size of their student, and in which order those with several workers get it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ray.tune import PlacementGroupFactory
from ray.tune.search import BasicVariantGenerator

from cotd.errors import CotdError
from cotd.study.config import StudyConfig

Bundle = dict[str, float]  # what one process takes: {"CPU": 2, "GPU": 1}
NAMES = {"cpus": "CPU", "gpus": "GPU"}
# A resource of Ray's head node alone. What only starts and follows a trial's workers sits there, and takes no CPU from them.
ON_HEAD = {"node:__internal_head__": 0.001}


@dataclass(frozen=True)
class Needs:
    """What a trial asks for: so many workers, each with these CPUs and GPUs."""

    workers: int
    cpus: float
    gpus: float

    @property
    def bundles(self) -> list[Bundle]:
        return [{"CPU": self.cpus, "GPU": self.gpus}] * self.workers

    @property
    def threads(self) -> int:
        """For each worker to compute with."""
        return max(1, int(self.cpus))

    def in_tune(self) -> PlacementGroupFactory:
        """What Tune reserves. Of a trial with several workers that is next to nothing: Ray Train places these."""
        return PlacementGroupFactory(self.bundles if self.workers == 1 else [ON_HEAD])


def needs_by_size(config: StudyConfig, sizes: Sequence[str]) -> dict[str, Needs]:
    """What the trials of each size ask for.

    Raises:
        CotdError: the cluster can never hold a trial of some size; all such sizes at once.
    """
    nodes = ray_nodes()
    has_gpus = any(node.get("GPU", 0) for node in nodes)
    needs, problems = {}, []
    for size in dict.fromkeys(sizes):
        asked = config.resources.of(size)
        shared = 0.25 if asked.workers == 1 else 1.0
        gpus = asked.gpus if asked.gpus is not None else shared * has_gpus
        needs[size] = Needs(asked.workers, asked.cpus, gpus)
        problems += lacking(size, needs[size], config, nodes)
    if problems:
        raise CotdError(*problems)
    return needs


def lacking(size: str, needs: Needs, config: StudyConfig, nodes: Sequence[Bundle]) -> list[str]:
    """Why no trial of a size can ever run, in words; none where one can."""
    own = config.resources.sizes.get(size)
    process = "each trial" if needs.workers == 1 else f"each of the {needs.workers} workers of a trial"
    too_much = []
    for key, name in NAMES.items():
        wanted, most = getattr(needs, key), max((node.get(name, 0) for node in nodes), default=0)
        if wanted > most:
            where = f"resources.sizes.{size}.{key}" if own and getattr(own, key) is not None else f"resources.{key}"
            too_much.append(
                f"{process} of size '{size}' asks for {wanted:g} {name} ({where}) and no node of Ray has over {most:g}"
            )
    if not too_much and not have_room(needs.bundles[:1], nodes):
        too_much = [
            f"{process} of size '{size}' asks for {needs.cpus:g} CPU and {needs.gpus:g} GPU, and no node of Ray has both"
        ]
    if not too_much and not have_room(needs.bundles, nodes):
        room = next(n for n in range(needs.workers, 0, -1) if have_room(needs.bundles[:n], nodes))
        too_much = [
            f"a trial of size '{size}' asks for {needs.workers} workers of {needs.cpus:g} CPU and {needs.gpus:g} GPU each, and Ray "
            f"has room for {room} of them"
        ]
    return [f"{problem}. Ask for less, or join a larger cluster (RAY_ADDRESS)." for problem in too_much]


def ray_nodes() -> list[Bundle]:
    """The resources of each node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def have_room(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> bool:
    """Whether nodes that are otherwise empty hold all bundles at once, placed one by one, the largest first."""
    free = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda b: (b["GPU"], b["CPU"]), reverse=True):
        node = next((n for n in free if all(n.get(name, 0) >= wanted - 1e-6 for name, wanted in bundle.items())), None)
        if node is None:
            return False
        node.update({name: node.get(name, 0) - wanted for name, wanted in bundle.items()})
    return True


class InTurn(BasicVariantGenerator):
    """Tune's grid in its order, but a trial with several workers begins only when all of them have room.

    Tune does not know what these take. It would start every such trial, each to wait for room in a process of its own.

    Args:
        needs: folder of a trial with several workers → what it asks for.
        nodes: the resources of each node.
    """

    def __init__(self, needs: Mapping[str, Needs], nodes: Sequence[Bundle], max_concurrent: int | None = None):
        super().__init__(max_concurrent=max_concurrent or 0)
        self.needs, self.nodes = needs, nodes
        self.waiting: list[Any] = []
        self.running: dict[str, list[Bundle]] = {}

    def next_trial(self) -> Any:
        if 0 < self.max_concurrent <= len(self._live_trials):
            return None
        for trial in self.waiting:
            if self._begins(trial):
                self.waiting.remove(trial)
                self._live_trials.add(trial.trial_id)
                return trial
        while (trial := super().next_trial()) is not None and not self._begins(trial):
            self._live_trials.discard(trial.trial_id)
            self.waiting.append(trial)
        return trial

    def _begins(self, trial: Any) -> bool:
        needs = self.needs.get(trial.config["folder"])
        if needs is None:  # one worker: Tune sees to it
            return True
        if not have_room([*chain.from_iterable(self.running.values()), *needs.bundles], self.nodes):
            return False
        self.running[trial.trial_id] = needs.bundles
        return True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        super().on_trial_complete(trial_id, result, error)
        self.running.pop(trial_id, None)

    def is_finished(self) -> bool:
        return super().is_finished() and not self.waiting

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Nothing: a sweep that is stopped is planned anew from its trials' folders."""
