"""Which trials begin when, where some take several workers."""

from __future__ import annotations

from types import SimpleNamespace

from pipelines.cluster.resources import Bundle, Needs
from pipelines.sweep.gang_queue import GangQueue

GPU_NODE, CPU_NODE, HEAD = {"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}, {"CPU": 0.0}


def gang_queue(folders: dict[str, Needs], nodes: list[Bundle], limit: int | None = None) -> GangQueue:
    queue = GangQueue({f: n for f, n in folders.items() if n.workers > 1}, lambda: nodes, limit)
    queue._trial_generator = iter([SimpleNamespace(trial_id=f, config={"folder": f}) for f in folders])
    return queue


def names(queue: GangQueue) -> list[str]:
    """The trials that begin now."""
    return [trial.trial_id for trial in iter(queue.next_trial, None)]


def test_trials_of_several_workers_begin_while_there_is_room_and_hold_up_no_others() -> None:
    pair, one = Needs(2, 8, 1), Needs(1, 1, 0)
    queue = gang_queue({"a": pair, "b": pair, "c": pair, "d": one, "e": one}, [HEAD, CPU_NODE, GPU_NODE, GPU_NODE])
    assert names(queue) == ["a", "b", "d", "e"]
    assert not queue.is_finished()
    queue.on_trial_complete("d")
    assert names(queue) == []
    queue.on_trial_complete("a", error=True)
    assert names(queue) == ["c"]
    assert queue.is_finished()
    limited = gang_queue({"a": pair, "b": pair, "c": pair, "d": one}, [GPU_NODE], limit=2)
    assert names(limited) == ["a", "d"]
    limited.on_trial_complete("a")
    assert names(limited) == ["b"]
