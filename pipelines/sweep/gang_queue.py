"""The order in which trials with several workers begin: all workers of a trial at once, as soon as they have room."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from ray.tune.search import BasicVariantGenerator

from pipelines.cluster.resources import Bundle, Needs, have_room


class GangQueue(BasicVariantGenerator):
    """Tune's grid in its order, but a trial with several workers begins only when all of them have room.

    Tune does not know what these workers take: it would start every such trial, each to wait for room in a process of its own.

    Args:
        needs: folder of a trial with several workers → its resources.
        nodes: gives the resources of each node that there is now: nodes come and go.
    """

    def __init__(self, needs: Mapping[str, Needs], nodes: Callable[[], Sequence[Bundle]], max_concurrent: int | None = None):
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
        if needs is None:  # one worker, which Tune places itself
            return True
        if not have_room([*chain.from_iterable(self.running.values()), *needs.bundles], self.nodes()):
            return False
        self.running[trial.trial_id] = needs.bundles
        return True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        super().on_trial_complete(trial_id, result, error)
        self.running.pop(trial_id, None)

    def is_finished(self) -> bool:
        return super().is_finished() and not self.waiting

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Saves nothing: a sweep that is stopped is planned anew from its trials' folders."""
