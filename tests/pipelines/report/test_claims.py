"""Which comparisons are made, and which claims hold."""

from __future__ import annotations

import pytest

from cotd.evaluation.statistics import mcnemar
from pipelines.report.claims import compare_methods, compare_sizes, compare_with_teacher, judge_claims, least_to_reach
from pipelines.report.results import group_trials
from tests.pipelines.report.studies import METHODS, Make


def test_methods_are_compared_at_the_same_size_and_fraction(study: Make) -> None:
    results = study(method=METHODS, size=["tiny", "small"]).finish_all().results()
    comparisons = compare_methods(results, group_trials(results))
    same = [c for c in comparisons if c["fraction"] is not None]
    assert len(same) == 6 * 2 * 2
    assert all(c["test"] == "permutation" and len(c["by_seed"]) == 2 for c in comparisons)
    across = [(c["a"], c["fraction_a"], c["b"], c["fraction_b"], c["size"]) for c in comparisons if c["fraction"] is None]
    assert across == [
        (a, 0.1, b, 1.0, s) for a, b in (("cot_labelled", "finetune"), ("cot_unlabelled", "distill")) for s in ("tiny", "small")
    ]


def test_sizes_are_compared_within_a_method_the_larger_first(study: Make) -> None:
    made = study(method=["finetune", "distill"], size=["tiny", "small"])
    made.accuracy = lambda method, fraction, size: 0.9 if (size, method) == ("small", "finetune") else 0.6
    results = made.finish_all().results()
    comparisons = compare_sizes(results, group_trials(results))
    assert [(c["a"], c["b"]) for c in comparisons] == [("small", "tiny")] * 4
    assert {(c["variant"], c["fraction"]): c["verdict"] for c in comparisons} == {
        ("finetune", 0.1): "holds", ("finetune", 1.0): "holds", ("distill", 0.1): "not shown", ("distill", 1.0): "not shown"
    }  # fmt: skip


def test_single_seeds_are_compared_by_mcnemar(study: Make) -> None:
    results = study(seed=[0], fraction=[1.0]).finish_all().results()
    (c,) = compare_methods(results, group_trials(results))
    assert (c["test"], c["p_value"]) == ("McNemar", mcnemar(results.correct[0], results.correct[1]))
    assert c["by_seed"] == [{"seed": 0, "p_value": c["p_value"]}]


def test_only_claims_whose_methods_are_there_are_judged(study: Make) -> None:
    results = study(method=["finetune", "distill"]).finish_all().results()
    assert judge_claims(compare_methods(results, group_trials(results))) == []


@pytest.mark.parametrize(("teacher", "expected"), [(0.8, 0.1), (0.95, None)])
def test_the_least_data_that_reach_the_teacher(study: Make, teacher: float, expected: float | None) -> None:
    made = study(size=["tiny", "small"])
    made.teacher = teacher
    accuracy = {("small", 0.1): 0.85, ("small", 1.0): 0.9, ("tiny", 1.0): 0.82}
    made.accuracy = lambda method, fraction, size: accuracy.get((size, fraction), 0.6) - 0.1 * (method == "distill")
    results = made.finish_all().results()
    groups = group_trials(results)
    least = least_to_reach(groups, compare_with_teacher(results, groups))
    assert [(r["size"], r["method"]) for r in least] == [(s, m) for s in ("tiny", "small") for m in ("finetune", "distill")]
    by_place = {(r["size"], r["method"]): r["fraction"] for r in least}
    assert by_place["small", "finetune"] == expected
    if expected:
        assert by_place["tiny", "finetune"] == 1.0
        assert by_place["tiny", "distill"] is None
