"""Which comparisons are made, which hold, and the sentences about them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cotd.evaluation.statistics import mcnemar
from pipelines.report.claims import compare_methods, compare_sizes, compare_with_teacher, judge_claims, least_to_reach
from pipelines.report.findings import Content, findings
from pipelines.report.results import group_trials
from pipelines.report.run import study_content
from tests.pipelines.report.conftest import Study

Make = Callable[..., Study]
METHODS = ["finetune", "distill", "cot_labelled", "cot_unlabelled"]
SIX = ["finetune", "cot_labelled", "cot_unlabelled", "distill", "cot_joint", "cot_joint_unlabelled"]


def content(made: Study) -> Content:
    """What `report.json` would hold, with a teacher's summary."""
    found = study_content(made.plan(), made.results())
    teacher = {"model": "embedded:teacher", "accuracy": made.teacher, "ci_low": 0.75, "ci_high": 0.85, "n": 200}
    return found | {"teacher": teacher if made.teacher is not None else None}


def sentence(found: Content, start: str) -> str:
    (matching,) = [s for s in findings(found) if s.startswith(start)]
    return matching


def test_methods_are_compared_at_the_same_size_and_fraction(study: Make) -> None:
    results = study(method=METHODS, size=["tiny", "small"]).finish_all().results()
    found = compare_methods(results, group_trials(results))
    same = [c for c in found if c["fraction"] is not None]
    assert len(same) == 6 * 2 * 2
    assert all(c["test"] == "permutation" and len(c["by_seed"]) == 2 for c in found)
    across = [(c["a"], c["fraction_a"], c["b"], c["fraction_b"], c["size"]) for c in found if c["fraction"] is None]
    assert across == [
        (a, 0.1, b, 1.0, s) for a, b in (("cot_labelled", "finetune"), ("cot_unlabelled", "distill")) for s in ("tiny", "small")
    ]


def test_sizes_are_compared_within_a_method_the_larger_first(study: Make) -> None:
    made = study(method=["finetune", "distill"], size=["tiny", "small"])
    made.accuracy = lambda method, fraction, size: 0.9 if (size, method) == ("small", "finetune") else 0.6
    results = made.finish_all().results()
    found = compare_sizes(results, group_trials(results))
    assert [(c["a"], c["b"]) for c in found] == [("small", "tiny")] * 4
    assert {(c["variant"], c["fraction"]): c["verdict"] for c in found} == {
        ("finetune", 0.1): "holds", ("finetune", 1.0): "holds", ("distill", 0.1): "not shown", ("distill", 1.0): "not shown"
    }  # fmt: skip
    assert any("4 comparisons of sizes were tested, with Holm's correction at 5 %" in s for s in findings(content(made)))
    small = sentence(content(made), "**small beats tiny**")
    assert small.startswith("**small beats tiny**, with the same method, holds for finetune at 10 %: +30.0 [")
    assert ". It is not shown for distill at 10 %: " in small


def test_comparisons_of_sizes_with_one_seed_say_so(study: Make) -> None:
    found = findings(content(study(method=["finetune"], fraction=[1.0], size=["tiny", "small"], seed=[0]).finish_all()))
    assert any(s.startswith("1 comparison of sizes was tested") for s in found)
    assert any(s.startswith("With one seed each, the tests are about these students") for s in found)


def test_single_seeds_are_compared_by_mcnemar(study: Make) -> None:
    results = study(seed=[0], fraction=[1.0]).finish_all().results()
    (c,) = compare_methods(results, group_trials(results))
    assert (c["test"], c["p_value"]) == ("McNemar", mcnemar(results.correct[0], results.correct[1]))
    assert c["by_seed"] == [{"seed": 0, "p_value": c["p_value"]}]


def test_a_claim_that_holds_one_that_does_not_and_one_that_is_contradicted(study: Make) -> None:
    made = study(method=SIX, fraction=[1.0])
    accuracy = {"finetune": 0.6, "cot_labelled": 0.8, "distill": 0.7, "cot_unlabelled": 0.7, "cot_joint_unlabelled": 0.9}
    made.accuracy = lambda method, fraction, size: accuracy.get(method, 0.8)
    found = content(made.finish_all())
    assert [c["title"] for c in found["claims"]] == [
        "cot_labelled beats finetune", "cot_unlabelled beats distill", "cot_labelled beats cot_joint",
        "cot_unlabelled beats cot_joint_unlabelled",
    ]  # fmt: skip
    assert sentence(found, "**cot_labelled beats finetune**").startswith(
        "**cot_labelled beats finetune** holds for tiny at 100 %: +20.0 ["
    )
    assert "is not shown for tiny at 100 %: 0.0 [−" in sentence(found, "**cot_unlabelled beats distill**")
    assert "is contradicted for tiny at 100 %: −20.0 [" in sentence(found, "**cot_unlabelled beats cot_joint_unlabelled**")
    assert sentence(found, "cot_joint_unlabelled beats finetune").startswith(
        "cot_joint_unlabelled beats finetune for tiny at 100 %: +30.0 ["
    )
    power = sentence(found, "15 comparisons of methods were tested, with Holm's correction at 5 %. With 200 test reviews")
    assert "points with 80 % power" in power


def test_only_claims_whose_methods_are_there_are_judged(study: Make) -> None:
    results = study(method=["finetune", "distill"]).finish_all().results()
    assert judge_claims(compare_methods(results, group_trials(results))) == []


def test_comparisons_with_one_seed_say_so(study: Make) -> None:
    found = content(study(seed=[0], fraction=[1.0]).finish_all())
    assert any(s.startswith("With one seed each, the tests are about these students") for s in findings(found))
    assert "No two methods differ significantly." in findings(found)


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
    found = content(made)
    if expected:
        assert by_place["tiny", "finetune"] == 1.0
        assert by_place["tiny", "distill"] is None
        assert "finetune, tiny (8 M), at 100 % (20 reviews), 82.0 %" in sentence(found, "The smallest student that reaches")
        assert "finetune, small (60 M), at 10 % (2 reviews), 85.0 %" in sentence(found, "The least data that reach it")
    else:
        line = sentence(found, "No student reaches its teacher, 95.0 %")
        assert "the nearest, finetune at 100 % (small), differs by −5.0 [" in line


def test_a_student_that_needs_the_teacher_is_never_the_answer(study: Make) -> None:
    made = study(method=["finetune", "rationale_input"], fraction=[1.0])
    made.accuracy = lambda method, fraction, size: 0.7 if method == "finetune" else 0.9
    found = content(made.finish_all())
    assert any(s.startswith("Students of rationale_input read the teacher's rationale") for s in findings(found))
    assert sentence(found, "Highest test accuracy").startswith("Highest test accuracy: finetune at 100 % (tiny), 70.0 % [")
    assert "the nearest, finetune" in sentence(found, "No student reaches its teacher")


def test_a_student_no_better_than_a_linear_model(study: Make) -> None:
    found = content(study().finish_all())
    linear = {"fraction": 1.0, "accuracy": 0.69, "ci_low": 0.65, "ci_high": 0.75, "n": 200, "train_reviews": 20}
    found["groups"] = [g for g in found["groups"] if g["fraction"] == 1.0]
    assert sentence(found | {"tfidf": [linear]}, "No student is clearly better than TF-IDF").endswith("69.0 % [65.0, 75.0].")
    assert not any("TF-IDF" in s for s in findings(found | {"tfidf": [linear | {"accuracy": 0.5}]}))


def test_methods_that_agree_on_everything_cannot_be_distinguished(study: Make) -> None:
    made = study(fraction=[1.0], seed=[0])
    made.accuracy = lambda method, fraction, size: 1.0
    assert sentence(content(made.finish_all()), "1 comparison of methods was").endswith(
        "The methods agree on all 200 test reviews: more are needed to distinguish them."
    )
