from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.errors import CotdError
from cotd.study.config import load_config
from cotd.study.grid import GridConfig
from cotd.study.trials import plan_trials
from cotd.training.trial import Trial

Plan = Callable[..., list[Trial]]


@pytest.fixture
def plan(write_study: Callable[..., Path]) -> Plan:
    def make(teacher: dict[str, object] | None = None, **grid: object) -> list[Trial]:
        blocks = {"method": ["finetune", "cot_labelled"], "fraction": [0.1, 1.0], "size": ["tiny", "base"], "seed": [0, 1]}
        config = load_config(write_study(grid=blocks | grid, teacher=teacher or {"samples": 3, "temperature": 0.7}))
        return plan_trials(config, {"tiny": "t", "base": "b", "large": "l"}, "r", "a")

    return make


def test_excluded_combinations_are_left_out(plan: Plan) -> None:
    trials = plan(exclude=[{"size": "base", "fraction": 0.1}, {"method": ["cot_labelled"], "seed": 1}])
    assert len(trials) == 16 - 4 - 4 + 1
    assert {t.fraction for t in trials if t.size == "base"} == {1.0}
    assert {t.seed for t in trials if t.method == "cot_labelled"} == {0}


def test_included_grids_take_the_rest_from_the_grid(plan: Plan) -> None:
    further = [{"method": ["cot_labelled"], "size": ["tiny"], "fraction": [1.0], "training": {"rationale_weight": [0, 0.5, 2]}}]
    trials = plan(include=further)
    # λ of 0.5 is the study's own: that trial is there already.
    assert len(trials) == 16 + 2 * 2
    assert {t.variant for t in trials} == {"", "rationale_weight 0", "rationale_weight 2"}
    added = [t for t in trials if t.variant]
    assert {(t.method, t.size, t.fraction) for t in added} == {("cot_labelled", "tiny", 1.0)}
    assert {t.training.rationale_weight for t in added} == {0.0, 2.0}
    assert any(t.title == "cot_labelled · 100 % · tiny · seed 1 · rationale_weight 2" for t in added)


def test_what_a_method_does_not_use_makes_no_trials(plan: Plan) -> None:
    trials = plan(training={"rationale_weight": [0.5, 2.0]}, samples=[1, 3], filters=[[], ["agrees_with_gold"]])
    assert len([t for t in trials if t.method == "finetune"]) == 8
    assert len([t for t in trials if t.method == "cot_labelled"]) == 8 * 2 * 2 * 2


def test_fewer_samples_are_filtered_again(plan: Plan) -> None:
    trials = plan(method=["cot_labelled"], fraction=[1.0], size=["tiny"], seed=[0], samples=[1, 3])
    assert {(t.samples, str(t.filters), t.variant) for t in trials} == {
        (None, "None", ""), (1, "['agrees_with_majority']", "samples 1"),
    }  # fmt: skip
    assert len({t.id for t in trials}) == 2


def test_an_arm_says_what_is_not_as_most_of_the_grid_has_it(plan: Plan) -> None:
    further = [{"samples": [3]}, {"training": {"rationale_weight": [0.5]}}, {"filters": [["agrees_with_gold"]]}]
    trials = plan(
        method=["cot_labelled"], fraction=[1.0], size=["tiny"], seed=[0], samples=[1], filters=[[]],
        training={"rationale_weight": [2.0]}, include=further,
    )  # fmt: skip
    assert [t.variant for t in trials] == ["", "samples 3", "rationale_weight 0.5", "filters agrees_with_gold"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"training": {"rationale_wieght": [1]}}, "no training key 'rationale_wieght'. Did you mean 'rationale_weight'?"),
        ({"training": {"dropout": [0.1, 2]}}, "dropout cannot be 2"),
        ({"training": {"dropout": []}}, "dropout needs a list of values"),
        ({"training": {"preset": ["sc4001"]}}, "'preset' cannot vary"),
        ({"samples": [0]}, "grid.samples.0: Input should be greater than or equal to 1"),
        ({"samples": [4]}, "grid.samples has 4, and the teacher writes 3 an example (teacher.samples)"),
        ({"filters": [["agrees_with_gould"]]}, "unknown filter 'agrees_with_gould'"),
        ({"exclude": [{"sise": "tiny"}]}, "unknown key 'grid.exclude.0.sise'. Did you mean 'size'?"),
        ({"exclude": [{"method": "distil"}]}, "unknown method 'distil'"),
        ({"exclude": [{"size": None}]}, "empty exclude entry"),
        ({"exclude": [{"size": "larg"}]}, "grid.exclude.0.size 'larg' is not in sizes"),
        ({"exclude": [{}]}, "empty exclude entry: name at least one dimension"),
        ({"exclude": [{"seed": [0, 1]}]}, "exclude leaves no combination"),
        ({"include": [{"method": ["distil"]}]}, "unknown method 'distil'"),
        ({"include": [{"size": ["tinny"]}]}, "grid.include.0.size 'tinny' is not in sizes"),
    ],
)
def test_invalid_grids(plan: Plan, grid: dict[str, object], message: str) -> None:
    with pytest.raises(CotdError) as caught:
        plan(**grid)
    assert message in str(caught.value)


seeds = st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True)
fractions = st.lists(st.sampled_from([0.1, 0.25, 0.5, 1.0]), min_size=1, unique=True)


@given(seeds, fractions, seeds, fractions)
def test_a_grid_is_its_product_less_what_is_excluded(
    seed: list[int], fraction: list[float], without: list[int], small: list[float]
) -> None:
    plain = {"method": ["finetune"], "fraction": fraction, "size": ["tiny"], "seed": seed}
    expected = {(f, s) for f, s in itertools.product(fraction, seed) if not (f in small and s in without)}
    if expected:
        grid = GridConfig.model_validate(plain | {"exclude": [{"seed": without, "fraction": small}]})
        assert {(c.fraction, c.seed) for c in grid.all_cells()} == expected
        assert grid.count_all() >= len(expected)
