"""The report's table, findings and figure, from a study folder that is made up but for its layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cotd.baselines import majority
from cotd.config import load_config
from cotd.statistics import accuracy_interval, mcnemar
from cotd.trials import plan_trials
from pipelines.report import comparisons, draw_accuracy, findings, group_trials, markdown
from pipelines.study import Plan

N = 200
# method → share of the test reviews that it gets right at fractions 0.1 and 1.0.
RIGHT = {"finetune": (0.6, 0.9), "distill": (0.6, 0.7)}
TFIDF = {"fraction": 1.0, "accuracy": 0.7, "ci_low": 0.65, "ci_high": 0.75, "n": N, "train_reviews": 24}
TEACHER = {"model": "embedded:teacher", "accuracy": 0.8, "ci_low": 0.75, "ci_high": 0.85, "n": N}


def right_rows(method: str, fraction: float, seed: int) -> np.ndarray:
    share = RIGHT[method][fraction == 1.0]
    rng = np.random.default_rng([seed, round(fraction * 10)])  # the same rows for every method, as far as they go
    return rng.permutation(N) < share * N


@pytest.fixture
def study(write_study: Callable[..., Path]) -> tuple[Plan, list[dict[str, Any]]]:
    """A plan whose trials' predictions lie in their folders, and the trials as the report lists them."""
    grid = {"method": list(RIGHT), "fraction": [0.1, 1.0], "size": ["tiny"], "seed": [0, 1]}
    config = load_config(write_study(grid=grid))
    plan = Plan(config, plan_trials(config, {"tiny": "b"}, "r", "a"), Path("unused"), None, None, {})
    trials = []
    for trial in plan.trials:
        right = right_rows(trial.method, trial.fraction, trial.seed)
        gold = np.where(np.arange(N) % 2 == 0, "positive", "negative")
        wrong = np.where(np.arange(N) % 2 == 0, "negative", "positive")
        table = pd.DataFrame(
            {"review_id": [f"r{i:03}" for i in range(N)], "gold": gold, "predicted": np.where(right, gold, wrong)}
        )
        folder = plan.folder(trial)
        folder.path.mkdir(parents=True)
        # Files need not agree on the order of rows: pairs are made by id.
        table.sample(frac=1, random_state=trial.seed).to_parquet(folder.predictions)
        trials.append(
            {"method": trial.method, "fraction": trial.fraction, "size": trial.size, "seed": trial.seed, "trial_id": trial.id}
            | {"train_reviews": round(24 * trial.fraction), "train_seconds": 1.0}
        )
    return plan, sorted(trials, key=lambda t: (t["method"] != "finetune", t["fraction"], t["seed"]))


def content_of(study: tuple[Plan, list[dict[str, Any]]]) -> dict[str, Any]:
    plan, trials = study
    return {
        "study": "small", "source": "reviews.csv", "trials": trials, "missing_trials": [], "teacher": TEACHER,
        "groups": group_trials(plan, trials), "comparisons": comparisons(plan, trials),
        "majority": majority(pd.read_parquet(plan.folder_of(trials[0]["trial_id"]).predictions)["gold"]),
        "tfidf": [TFIDF],
    }  # fmt: skip


def test_groups_are_means_over_seeds(study: tuple[Plan, list[dict[str, Any]]]) -> None:
    groups = {(g["method"], g["fraction"]): g for g in group_trials(*study)}
    assert len(groups) == 4
    for (method, fraction), group in groups.items():
        assert group["seeds"] == 2
        assert group["accuracy"] == pytest.approx(RIGHT[method][fraction == 1.0])
        assert group["ci_low"] < group["accuracy"] < group["ci_high"]


def test_one_seed_has_the_wilson_interval(study: tuple[Plan, list[dict[str, Any]]]) -> None:
    plan, trials = study
    (group,) = group_trials(plan, trials[:1])
    expected = accuracy_interval(right_rows("finetune", 0.1, 0))
    assert (group["accuracy"], group["ci_low"], group["ci_high"]) == pytest.approx(expected)


def test_methods_are_compared_on_the_same_reviews(study: tuple[Plan, list[dict[str, Any]]]) -> None:
    rows = comparisons(*study)
    assert {(c["a"], c["b"], c["fraction"], c["seed"]) for c in rows} == {
        ("finetune", "distill", f, s) for f in (0.1, 1.0) for s in (0, 1)
    }
    for c in rows:
        a, b = (right_rows(m, c["fraction"], c["seed"]) for m in ("finetune", "distill"))
        assert c["p_value"] == pytest.approx(mcnemar(a, b))
        assert c["difference"] == pytest.approx(a.mean() - b.mean())
    assert [c["p_value"] < 0.05 for c in sorted(rows, key=lambda c: c["fraction"])] == [False, False, True, True]


def test_the_table_is_one_that_markdown_readers_can_draw(study: tuple[Plan, list[dict[str, Any]]]) -> None:
    text = markdown(content_of(study))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    header, _, finetune, distill, linear, always, teacher = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table
    )
    assert header == ["tiny", "10 % of the data", "100 % of the data"]
    assert finetune[0] == "`finetune`"
    assert finetune[1].startswith("60.0 % [")
    assert finetune[2].startswith("90.0 % [")
    assert distill[2].startswith("70.0 % [")
    assert linear == ["TF-IDF + logistic regression", "", "70.0 % [65.0, 75.0]"]
    assert always == ["always *negative*", "", "50.0 % [43.1, 56.9]"]
    assert teacher == ["teacher (embedded:teacher)", "", "80.0 % [75.0, 85.0]"]


def test_the_findings_say_what_chance_does_not_explain(study: tuple[Plan, list[dict[str, Any]]]) -> None:
    sentences = findings(content_of(study))
    assert [s for s in sentences if "beats" in s] == [
        f"finetune beats distill by 20.0 points (100 %, tiny, seed {s}; McNemar p = 1.8e-12)." for s in (0, 1)
    ]
    assert "4 pairs were tested, without correction for their number." in sentences
    assert any(s.startswith("Best student: finetune at 100 % (tiny), 90.0 % [") for s in sentences)
    assert not any("clearly better" in s for s in sentences), "0.9 is better than both baselines"
    close = content_of(study) | {"tfidf": [TFIDF | {"accuracy": 0.88}]}
    assert any(s.startswith("No student is clearly better than TF-IDF") for s in findings(close))
    assert sentences[-1] == f"That is above its teacher, 80.0 % [75.0, 85.0] on the same {N} reviews."


def test_a_student_that_needs_the_teacher_is_never_the_best(study: tuple[Plan, list[dict[str, Any]]]) -> None:
    content = content_of(study)
    groups = [g | {"method": "rationale_input"} if g["method"] == "finetune" else g for g in content["groups"]]
    sentences = findings(content | {"groups": groups})
    assert any(s.startswith("Students of rationale_input read the teacher's rationale") for s in sentences)
    assert any(s.startswith("Best student: distill at 100 % (tiny), 70.0 % [") for s in sentences)


def test_no_difference_is_said_too(study: tuple[Plan, list[dict[str, Any]]]) -> None:
    plan, trials = study
    tenth = [t for t in trials if t["fraction"] == 0.1]
    content = content_of((plan, tenth)) | {"teacher": None, "missing_trials": ["distill · 100 % · tiny · seed 0"]}
    assert findings(content)[0].startswith("No two methods differ by more than chance would explain")
    assert "No student is clearly better than TF-IDF" not in " ".join(findings(content)), "there is none at this fraction"
    text = markdown(content)
    assert "teacher" not in text
    assert "Not done yet: distill · 100 % · tiny · seed 0." in text


def test_the_figure_is_drawn(study: tuple[Plan, list[dict[str, Any]]], tmp_path: Path) -> None:
    draw_accuracy(content_of(study), tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part*"))
