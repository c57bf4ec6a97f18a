"""What trials ask Ray for by size, and which of them begin when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from cotd.errors import CotdError
from cotd.study.config import load_config
from pipelines.cluster.resources import Bundle, InTurn, Needs, have_room, needs_by_size

GPU_NODE, CPU_NODE, HEAD = {"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}, {"CPU": 0.0}
MIXED = [HEAD, CPU_NODE, GPU_NODE, GPU_NODE]
SIZES = "sizes={tiny: a, base: b, large: c}"
GRID = "grid.size=[tiny, base, large]"


@pytest.fixture
def needs(write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Needs]]:
    """What the trials of each size ask for, on a cluster of these nodes."""

    def ask(nodes: Sequence[Bundle], *overrides: str) -> dict[str, Needs]:
        monkeypatch.setattr("pipelines.cluster.resources.ray_nodes", lambda: nodes)
        config = load_config(write_study(), [SIZES, GRID, *overrides])
        return needs_by_size(config, config.grid.size)

    return ask


def test_each_size_asks_for_what_it_needs(needs: Callable[..., dict[str, Needs]]) -> None:
    own = "resources={cpus: 2, sizes: {tiny: {gpus: 0}, large: {workers: 4, cpus: 8}}}"
    assert needs(MIXED, own) == {"tiny": Needs(1, 2, 0), "base": Needs(1, 2, 0.25), "large": Needs(4, 8, 1)}
    assert needs([CPU_NODE] * 4, own) == {"tiny": Needs(1, 2, 0), "base": Needs(1, 2, 0), "large": Needs(4, 8, 0)}


def test_what_no_cluster_node_has_is_said_of_all_sizes_at_once(needs: Callable[..., dict[str, Needs]]) -> None:
    with pytest.raises(CotdError) as caught:
        needs(MIXED, "resources={cpus: 9, gpus: 0, sizes: {base: {cpus: 17}, large: {workers: 5, gpus: 1, cpus: 8}}}")
    assert [p.partition(".")[0] for p in caught.value.problems] == [
        "each trial of size 'base' asks for 17 CPU (resources",
        "a trial of size 'large' asks for 5 workers of 8 CPU and 1 GPU each, and Ray has room for 4 of them",
    ]
    assert "resources.sizes.base.cpus) and no node of Ray has over 16" in caught.value.problems[0]
    with pytest.raises(CotdError, match="9 CPU and 1 GPU, and no node of Ray has both"):
        needs([{"CPU": 16.0}, {"CPU": 4.0, "GPU": 1.0}], "resources={cpus: 9, gpus: 1}")


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ("{sizes: {larg: {workers: 2}}}", "resources.sizes 'larg' is not in sizes .* Did you mean 'large'"),
        ("{sizes: {large: {worker: 2}}}", "unknown key 'resources.sizes.large.worker'. Did you mean 'workers'"),
        ("{sizes: {large: {workers: 2, gpus: 0.5}}}", "sizes.large: 2 workers that train together take a GPU each .* not 0.5"),
        ("{workers: 0}", "resources.workers"),
    ],
)
def test_bad_resources_are_refused(resources: str, said: str, write_study: Callable[..., Path]) -> None:
    with pytest.raises(CotdError, match=said):
        load_config(write_study(), [SIZES, GRID, f"resources={resources}"])


def test_room_is_that_of_single_nodes() -> None:
    four = [{"CPU": 4.0, "GPU": 0.0}] * 4
    assert have_room(four, [CPU_NODE] * 2)
    assert not have_room(four, [{"CPU": 6.0}] * 3)
    assert have_room([{"CPU": 0.1, "GPU": 0.25}] * 4, [{"CPU": 1.0, "GPU": 1.0}])


def in_turn(folders: dict[str, Needs], nodes: list[Bundle], limit: int | None = None) -> InTurn:
    turn = InTurn({f: n for f, n in folders.items() if n.workers > 1}, nodes, limit)
    turn._trial_generator = iter([SimpleNamespace(trial_id=f, config={"folder": f}) for f in folders])
    return turn


def names(turn: InTurn) -> list[str]:
    """The trials that begin now."""
    return [trial.trial_id for trial in iter(turn.next_trial, None)]


def test_trials_of_several_workers_begin_while_there_is_room_and_hold_up_no_others() -> None:
    pair, one = Needs(2, 8, 1), Needs(1, 1, 0)
    turn = in_turn({"a": pair, "b": pair, "c": pair, "d": one, "e": one}, MIXED)
    assert names(turn) == ["a", "b", "d", "e"]
    assert not turn.is_finished()
    turn.on_trial_complete("d")
    assert names(turn) == []
    turn.on_trial_complete("a", error=True)
    assert names(turn) == ["c"]
    assert turn.is_finished()
    limited = in_turn({"a": pair, "b": pair, "c": pair, "d": one}, [GPU_NODE], limit=2)
    assert names(limited) == ["a", "d"]
    limited.on_trial_complete("a")
    assert names(limited) == ["b"]
