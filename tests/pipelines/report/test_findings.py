"""The sentences of a report."""

from __future__ import annotations

import pytest

from pipelines.report.findings import findings
from pipelines.report.results import Content
from tests.pipelines.report.studies import METHODS, Make, content


def sentence(report: Content, start: str) -> str:
    (matching,) = [s for s in findings(report) if s.startswith(start)]
    return matching


def test_a_claim_that_holds_one_that_does_not_and_one_that_is_contradicted(study: Make) -> None:
    made = study(method=[*METHODS, "cot_joint", "cot_joint_unlabelled"], fraction=[1.0])
    accuracy = {"finetune": 0.6, "cot_labelled": 0.8, "distill": 0.7, "cot_unlabelled": 0.7, "cot_joint_unlabelled": 0.9}
    made.accuracy = lambda method, fraction, size: accuracy.get(method, 0.8)
    report = content(made.finish_all())
    assert [c["title"] for c in report["claims"]] == [
        "cot_labelled beats finetune", "cot_unlabelled beats distill", "cot_labelled beats cot_joint",
        "cot_unlabelled beats cot_joint_unlabelled",
    ]  # fmt: skip
    assert sentence(report, "**cot_labelled beats finetune**").startswith(
        "**cot_labelled beats finetune** holds for tiny at 100 %: +20.0 ["
    )
    assert "is not shown for tiny at 100 %: 0.0 [−" in sentence(report, "**cot_unlabelled beats distill**")
    assert "is contradicted for tiny at 100 %: −20.0 [" in sentence(report, "**cot_unlabelled beats cot_joint_unlabelled**")
    assert sentence(report, "cot_joint_unlabelled beats finetune").startswith(
        "cot_joint_unlabelled beats finetune for tiny at 100 %: +30.0 ["
    )
    power = sentence(report, "15 comparisons of methods were tested, with Holm's correction at 5 %. With 200 test examples")
    assert "points with 80 % power" in power


def test_differences_of_sizes_have_a_sentence(study: Make) -> None:
    made = study(method=["finetune", "distill"], size=["tiny", "small"])
    made.accuracy = lambda method, fraction, size: 0.9 if (size, method) == ("small", "finetune") else 0.6
    report = content(made.finish_all())
    assert any("4 comparisons of sizes were tested, with Holm's correction at 5 %" in s for s in findings(report))
    small = sentence(report, "**small beats tiny**")
    assert small.startswith("**small beats tiny**, with the same method, holds for finetune at 10 %: +30.0 [")
    assert ". It is not shown for distill at 10 %: " in small


def test_comparisons_of_sizes_with_one_seed_say_so(study: Make) -> None:
    sentences = findings(content(study(method=["finetune"], fraction=[1.0], size=["tiny", "small"], seed=[0]).finish_all()))
    assert any(s.startswith("1 comparison of sizes was tested") for s in sentences)
    assert any(s.startswith("With one seed each, the tests are about these students") for s in sentences)


def test_comparisons_with_one_seed_say_so(study: Make) -> None:
    report = content(study(seed=[0], fraction=[1.0]).finish_all())
    assert any(s.startswith("With one seed each, the tests are about these students") for s in findings(report))
    assert "No two methods differ significantly." in findings(report)


@pytest.mark.parametrize("teacher", [0.8, 0.95])
def test_the_students_that_reach_the_teacher_are_named(study: Make, teacher: float) -> None:
    made = study(size=["tiny", "small"])
    made.teacher = teacher
    accuracy = {("small", 0.1): 0.85, ("small", 1.0): 0.9, ("tiny", 1.0): 0.82}
    made.accuracy = lambda method, fraction, size: accuracy.get((size, fraction), 0.6) - 0.1 * (method == "distill")
    report = content(made.finish_all())
    if teacher == 0.8:
        assert "finetune, tiny (8 M), at 100 % (20 examples), 82.0 %" in sentence(report, "The smallest student that reaches")
        assert "finetune, small (60 M), at 10 % (2 examples), 85.0 %" in sentence(report, "The least data that reach it")
    else:
        line = sentence(report, "No student reaches its teacher, 95.0 %")
        assert "the nearest, finetune at 100 % (small), differs by −5.0 [" in line


def test_a_student_that_needs_the_teacher_is_never_the_answer(study: Make) -> None:
    made = study(method=["finetune", "rationale_input"], fraction=[1.0])
    made.accuracy = lambda method, fraction, size: 0.7 if method == "finetune" else 0.9
    report = content(made.finish_all())
    assert any(s.startswith("Students of rationale_input read the teacher's rationale") for s in findings(report))
    assert sentence(report, "Highest test accuracy").startswith("Highest test accuracy: finetune at 100 % (tiny), 70.0 % [")
    assert "the nearest, finetune" in sentence(report, "No student reaches its teacher")


def test_a_student_no_better_than_a_linear_model(study: Make) -> None:
    report = content(study().finish_all())
    interval = {"ci_low": 0.65, "ci_high": 0.75, "n": 200}
    linear = {"name": "TF-IDF + logistic regression", "fraction": 1.0, "accuracy": 0.69, **interval}
    report["groups"] = [g for g in report["groups"] if g["fraction"] == 1.0]
    assert sentence(report | {"tfidf": [linear]}, "No student is clearly better than TF-IDF").endswith("69.0 % [65.0, 75.0].")
    assert not any("TF-IDF" in s for s in findings(report | {"tfidf": [linear | {"accuracy": 0.5}]}))


def test_methods_that_agree_on_everything_cannot_be_distinguished(study: Make) -> None:
    made = study(fraction=[1.0], seed=[0])
    made.accuracy = lambda method, fraction, size: 1.0
    assert sentence(content(made.finish_all()), "1 comparison of methods was").endswith(
        "The methods agree on all 200 test examples: more are needed to distinguish them."
    )
