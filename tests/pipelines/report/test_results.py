"""A study's results, read from its folders, and why the rest is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cotd.errors import CotdError
from cotd.evaluation.statistics import accuracy_interval
from cotd.study.config import load_config
from cotd.study.search import SearchConfig
from cotd.teachers.config import ImportedColumns, ImportedConfig
from pipelines.report.claims import compare_methods
from pipelines.report.results import group_trials, plan_so_far
from pipelines.report.text import tokens
from tests.pipelines.report.studies import Make, N

RIGHT = {("finetune", 0.1): 0.6, ("finetune", 1.0): 0.9, ("distill", 0.1): 0.6, ("distill", 1.0): 0.7}


def test_groups_are_means_over_seeds(study: Make) -> None:
    made = study()
    made.accuracy = lambda method, fraction, size: RIGHT[method, fraction]
    groups = {(g["method"], g["fraction"]): g for g in group_trials(made.finish_all().results())}
    assert groups.keys() == RIGHT.keys()
    for key, group in groups.items():
        assert group["seeds"] == 2
        assert group["accuracy"] == group["teacher_agreement"] == pytest.approx(RIGHT[key])
        assert group["ci_low"] < group["accuracy"] < group["ci_high"]
        assert group["train_seconds"] == 10.0
        assert group["parameters"] == 8_000_000


def test_one_seed_has_the_wilson_interval(study: Make) -> None:
    made = study(method=["finetune"], fraction=[1.0], seed=[3])
    results = made.finish_all().results()
    (group,) = group_trials(results)
    assert (group["accuracy"], group["ci_low"], group["ci_high"]) == accuracy_interval(results.correct[0])


def test_teacher_tokens_are_those_that_the_method_learns_from(study: Make) -> None:
    groups = group_trials(study(method=["finetune", "distill", "cot_labelled"]).finish_all().results())
    tokens = {(g["method"], g["fraction"]): g["teacher_tokens"] for g in groups}
    assert tokens == {
        ("finetune", 0.1): 0, ("finetune", 1.0): 0, ("distill", 0.1): 200, ("distill", 1.0): 2000,
        ("cot_labelled", 0.1): 200, ("cot_labelled", 1.0): 2000,
    }  # fmt: skip


def test_tokens_of_answers_read_from_a_file_are_not_known(study: Make) -> None:
    made = study(method=["finetune", "distill"], fraction=[1.0]).finish_all()
    imported = ImportedConfig(columns=ImportedColumns(label="opinion", rationale="why"))
    made.config = made.config.model_copy(update={"teacher": made.config.teacher.model_copy(update={"imported": imported})})
    groups = group_trials(made.results())
    assert {g["method"]: g["teacher_tokens"] for g in groups} == {"finetune": 0, "distill": None}
    assert {g["method"]: tokens(g["teacher_tokens"]) for g in groups} == {"finetune": "none", "distill": "unknown"}


def test_an_unfinished_study_says_what_is_missing_and_why(study: Make) -> None:
    made = study()
    done, failed, stopped, damaged, foreign, *rest = made.trials
    plan = made.plan()
    for trial in (done, damaged, foreign):
        made.finish(trial)
    plan.folder(failed).path.mkdir(parents=True)
    plan.folder(failed).error.write_text("Traceback …\nRuntimeError: out of memory")
    plan.folder(stopped).path.mkdir(parents=True)
    plan.folder(stopped).metrics.write_text('{"step": 25, "validation_accuracy": 0.6}\n')
    plan.folder(damaged).predictions.write_bytes(b"PAR1")
    table = pd.read_parquet(plan.folder(foreign).predictions)
    table.assign(example_id=table["example_id"] + "x").to_parquet(plan.folder(foreign).predictions)

    results = made.results()
    assert [t["trial_id"] for t in results.trials] == [done.id]
    missing = {m["title"]: m for m in results.missing}
    assert missing[failed.title]["state"] == "failed"
    assert "RuntimeError: out of memory" in missing[failed.title]["why"]
    assert missing[stopped.title]["why"] == "running, or stopped after step 25"
    assert missing[damaged.title]["state"] == "unreadable"
    assert "Delete" in missing[damaged.title]["why"]
    assert f"has {N} examples that are not the study's {N} test examples" in missing[foreign.title]["why"]
    assert {missing[t.title]["state"] for t in rest} == {"not started"}


def test_with_no_trial_done_there_is_still_the_teacher(study: Make) -> None:
    made = study()
    results = made.results()
    assert results.trials == group_trials(results) == []
    assert results.teacher_correct is not None
    assert results.teacher_correct.mean() == pytest.approx(0.8)
    made.teacher = None
    with pytest.raises(CotdError, match=r"no finished trial to report\. Run `cotd sweep CONFIG` first"):
        made.results()


def test_an_example_the_teacher_was_not_asked_about_is_not_a_wrong_one(study: Make) -> None:
    made = study()
    plan = made.plan()
    assert plan.teacher_test is not None
    table = pd.read_parquet(plan.teacher_test).sort_values("example_id")
    refused = table.assign(predicted=table["predicted"].where(table["example_id"] != "r000"))
    refused.iloc[:50].to_parquet(plan.teacher_test)
    made.plan = lambda: plan  # type: ignore[method-assign]
    row = made.results().teacher_correct
    assert row is not None
    assert row[0] == 0.0, "a refusal counts as wrong"
    assert np.isnan(row[50:]).all()
    assert not np.isnan(row[:50]).any()


def test_methods_that_need_no_annotations_are_reported_before_there_are_any(write_study: Callable[..., object]) -> None:
    grid = {"method": ["finetune", "distill", "cot_labelled"], "fraction": [1.0], "size": ["tiny"], "seed": [0]}
    plan, notes = plan_so_far(load_config(write_study(grid=grid)))  # type: ignore[arg-type]
    assert [t.method for t in plan.trials] == ["finetune"]
    assert notes == [
        "No annotations yet, which distill, cot_labelled need: run `cotd annotate CONFIG`, then `cotd sweep CONFIG`."
    ]


def test_a_trial_with_settings_of_its_own_is_a_group_of_its_own(study: Make) -> None:
    grid = {"training": {"rationale_weight": [1.0, 2.0]}, "method": ["cot_labelled"]}
    both = {"training": {"rationale_weight": [2.0], "steps": [600]}, "method": ["cot_labelled"]}
    made = study(method=["finetune", "cot_labelled"], fraction=[1.0], seed=[0], include=[grid, both])
    results = made.finish_all().results()
    groups = group_trials(results)
    assert [(g["method"], g["setting"]) for g in groups] == [
        ("finetune", ""), ("cot_labelled", ""), ("cot_labelled", "rationale_weight 1"), ("cot_labelled", "rationale_weight 2"),
        ("cot_labelled", "rationale_weight 2, steps 600"),
    ]  # fmt: skip
    compared = {(c["a"], c["b"]) for c in compare_methods(results, groups)}
    # finetune has no λ to differ in, but it has steps.
    assert compared == {
        ("cot_labelled", "finetune"), ("cot_labelled (rationale_weight 1)", "finetune"),
        ("cot_labelled (rationale_weight 2)", "finetune"), ("cot_labelled", "cot_labelled (rationale_weight 1)"),
        ("cot_labelled", "cot_labelled (rationale_weight 2)"),
        ("cot_labelled (rationale_weight 1)", "cot_labelled (rationale_weight 2)"),
        ("cot_labelled (rationale_weight 2)", "cot_labelled (rationale_weight 2, steps 600)"),
    }  # fmt: skip


def test_what_a_search_gave_up_is_not_missing(study: Make) -> None:
    made = study(method=["finetune"], fraction=[1.0], seed=[0])
    search = {"samples": 2, "seed": 0, "space": {"learning_rate": {"loguniform": [1e-4, 1e-2]}}}
    made.config = made.config.model_copy(update={"search": SearchConfig.model_validate(search)})
    (trial,) = made.trials
    other = replace(
        trial, training=trial.training.model_copy(update={"learning_rate": 1e-4}), overrides={"learning_rate": 1e-4}
    )
    made.trials.append(other)
    made.finish(trial)
    made.plan().folder(other).path.mkdir(parents=True)
    made.plan().folder(other).write_pruned({"step": 50, "validation_accuracy": 0.6})
    results = made.results()
    assert (len(results.trials), results.given_up, results.missing) == (1, 1, [])


def test_a_method_of_an_included_grid_waits_for_annotations_too(write_study: Callable[..., object]) -> None:
    grid = {"method": ["finetune"], "fraction": [1.0], "size": ["tiny"], "seed": [0]}
    include = [{"method": ["cot_labelled"]}, {"seed": [1]}]
    plan, notes = plan_so_far(load_config(write_study(grid=grid | {"include": include})))  # type: ignore[arg-type]
    assert [(t.method, t.seed) for t in plan.trials] == [("finetune", 0), ("finetune", 1)]
    assert notes[0].startswith("No annotations yet, which cot_labelled need")
