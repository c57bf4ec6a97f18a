"""The resources of trials by size, and whether a cluster has room for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from cotd.errors import CotdError
from cotd.study.config import load_config
from pipelines.cluster.resources import Bundle, Needs, have_room, needs_by_size

GPU_NODE, CPU_NODE, HEAD = {"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}, {"CPU": 0.0}
MIXED = [HEAD, CPU_NODE, GPU_NODE, GPU_NODE]
SIZES = "sizes={tiny: a, base: b, large: c}"
GRID = "grid.size=[tiny, base, large]"


class Limits:
    """What the cluster's autoscaler lets it have; nothing where there is none."""

    now: ClassVar[Bundle] = {}


@pytest.fixture
def needs(write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Needs]]:
    """What the trials of each size ask for, on a cluster of these nodes."""

    def ask(nodes: Sequence[Bundle], *overrides: str) -> dict[str, Needs]:
        monkeypatch.setattr("pipelines.cluster.resources.ray_nodes", lambda: nodes)
        monkeypatch.setattr("pipelines.cluster.resources.growth_limits", lambda: Limits.now)
        config = load_config(write_study(), [SIZES, GRID, *overrides])
        return needs_by_size(config, config.grid.size)

    return ask


def test_each_size_has_its_own_resources(needs: Callable[..., dict[str, Needs]]) -> None:
    own = "resources={cpus: 2, sizes: {tiny: {gpus: 0}, large: {workers: 4, cpus: 8}}}"
    assert needs(MIXED, own) == {"tiny": Needs(1, 2, 0), "base": Needs(1, 2, 1), "large": Needs(4, 8, 1)}
    assert needs([CPU_NODE] * 4, own) == {"tiny": Needs(1, 2, 0), "base": Needs(1, 2, 0), "large": Needs(4, 8, 0)}


def test_sizes_that_no_node_can_hold_are_all_named(needs: Callable[..., dict[str, Needs]]) -> None:
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


def test_an_autoscaler_that_can_add_nodes_is_asked_and_waited_for(
    needs: Callable[..., dict[str, Needs]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes: list[Bundle] = [HEAD]
    asked: list[list[Bundle]] = []

    def request(bundles: list[Bundle]) -> None:
        asked.append(bundles)
        nodes.extend([GPU_NODE] * len(bundles))

    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", request)
    with pytest.raises(CotdError, match="no node of Ray has over 0"):
        needs(nodes)
    limits = {"CPU": 32, "GPU": 4}
    monkeypatch.setattr(Limits, "now", limits)
    assert needs(nodes, "resources={cpus: 2, sizes: {large: {workers: 2}}}")["large"] == Needs(2, 2, 1)
    assert asked == [[{"CPU": 2, "GPU": 1}], []], "one of each size fits the node that was added; then it is let go"
    with pytest.raises(CotdError, match="asks for 5 workers"):
        needs(nodes, "resources={cpus: 2, sizes: {large: {workers: 5}}}")
    assert len(asked) == 2, "what it can never hold is not waited for"
