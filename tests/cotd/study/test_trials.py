from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cotd.study.config import load_config
from cotd.study.trials import plan_trials
from cotd.teachers.annotations import annotation_row, annotations_digest
from cotd.teachers.store import new_completion

GRID = "grid={method: [finetune, cot_labelled], fraction: [0.1, 1.0], size: [tiny], seed: [0]}"


@pytest.fixture
def plan(write_study: Callable[..., Path]) -> Callable[..., dict[tuple[str, float], str]]:
    """(method, fraction) → trial id, for a study with overrides and digests."""

    def make(
        *overrides: str, base: str = "b", examples: str = "r", annotations: str | None = "a"
    ) -> dict[tuple[str, float], str]:
        config = load_config(write_study(), [GRID, *overrides])
        trials = plan_trials(config, dict.fromkeys(config.grid.size, base), examples, annotations)
        return {(t.method, t.fraction): t.id for t in trials}

    return make


Ids = Callable[..., dict[tuple[str, float], str]]


@pytest.mark.parametrize(
    "override",
    [
        "storage=/elsewhere",
        "name=renamed",
        "resources.cpus=4",
        "resources.max_concurrent=1",
        "resources.sizes={tiny: {workers: 4}}",
        "training.gradient_checkpointing=true",
        "tracking.uri=http://mlflow:5000",
        "tracking.registered_model=other",
        "sizes.tiny=/a/copy/of/the/model",
        "teacher.engine.batch_size=3",
        "data.source=/elsewhere/copy.csv",
        "task={name: other, labels: {negative: [-1], positive: [good]}, positive: positive, noun: review, label_name: Sentiment, "
        "instruction: 'Is the opinion in this review positive or negative?'}",
    ],
)
def test_an_id_does_not_depend_on_where(plan: Ids, override: str) -> None:
    assert plan(override) == plan()


def test_an_id_does_not_depend_on_what_a_size_is_called(plan: Ids) -> None:
    assert plan("sizes.mine=/some/folder", "grid.size=[mine]") == plan()


@pytest.mark.parametrize(
    "override",
    [
        "training.steps=7",
        "training.learning_rate=0.01",
        "training.precision=float32",
        "training.truncation=head",
        "training.weight_average=0.99",
        "training.gradient_clipping=0.5",
        "grid.seed=[1]",
        "task={name: sentiment, labels: [negative, positive], label_prefix: 'label: '}",
    ],
)
def test_an_id_changes_with_the_training(plan: Ids, override: str) -> None:
    assert not set(plan(override).values()) & set(plan().values())


def test_an_id_changes_with_what_is_trained_on(plan: Ids) -> None:
    before = set(plan().values())
    assert len(before) == 4
    assert not set(plan(base="other").values()) & before
    assert not set(plan(examples="other").values()) & before


def test_another_teacher_does_not_make_finetune_train_again(plan: Ids) -> None:
    before, after = plan(), plan(annotations="other")
    assert {cell for cell in before if before[cell] == after[cell]} == {("finetune", 0.1), ("finetune", 1.0)}
    assert plan(annotations=None)["finetune", 0.1] == before["finetune", 0.1]


@pytest.mark.parametrize(
    "override", ["training.rationale_weight=0.9", "training.max_target_tokens=9", "training.shared_encoder=true"]
)
def test_what_is_of_rationales_alone_does_not_make_finetune_train_again(plan: Ids, override: str) -> None:
    before, after = plan(), plan(override)
    assert {cell for cell in before if before[cell] == after[cell]} == {("finetune", 0.1), ("finetune", 1.0)}


def test_new_rationales_do_not_make_distill_train_again(write_study: Callable[..., Path]) -> None:
    config = load_config(write_study(), ["grid={method: [distill, cot_unlabelled], fraction: [1.0], size: [tiny], seed: [0]}"])
    rows = [
        annotation_row(
            f"{i:016}",
            0,
            False,
            label,
            0.9,
            f"It is {i}, and so it is so.",
            new_completion("", prompt_tokens=0, output_tokens=0),
            {},
        )
        for i, label in enumerate(["negative", "positive"])
    ]
    table = pd.DataFrame(rows)
    ids = []
    for other in (table, table.assign(rationale="It is another thing."), table.assign(label="positive")):
        trials = plan_trials(config, {"tiny": "b"}, "r", annotations_digest(other))
        ids.append({t.method: t.id for t in trials})
    assert ids[0]["distill"] == ids[1]["distill"] != ids[2]["distill"]
    assert len({i["cot_unlabelled"] for i in ids}) == 3


def test_auto_precision_counts_as_what_it_stands_for(write_study: Callable[..., Path]) -> None:
    auto, named = load_config(write_study(), [GRID]), load_config(write_study(), [GRID, "training.precision=bfloat16"])
    for precision in ("bfloat16", "float32"):
        trials = plan_trials(auto, {"tiny": "b"}, "r", "a", precisions={"tiny": precision})
        assert {t.training.precision for t in trials} == {precision}
        same = {t.id for t in trials} == {t.id for t in plan_trials(named, {"tiny": "b"}, "r", "a")}
        assert same == (precision == "bfloat16")


def test_the_grid_is_planned_once_each_the_expensive_first(write_study: Callable[..., Path]) -> None:
    grid = "grid={method: [finetune, cot_labelled, finetune], fraction: [0.1, 1, 1.0], size: [tiny, base], seed: [0, 1]}"
    trials = plan_trials(load_config(write_study(), [grid]), {"tiny": "t", "base": "b"}, "r", "a")
    assert len(trials) == len({t.id for t in trials}) == 2 * 2 * 2 * 2
    assert {t.size for t in trials[:8]} == {"base"}
    assert {t.method for t in trials[:4]} == {"cot_labelled"}


def test_the_largest_trials_come_first(write_study: Callable[..., Path]) -> None:
    """By steps × tokens × parameters, whatever the order in the file."""
    grid = {"method": ["finetune", "cot_labelled"], "fraction": [1.0], "size": ["tiny", "base"], "seed": [0]}
    grid["training"] = {"steps": [10, 1000]}
    config = load_config(write_study(grid=grid, sizes={"base": "b", "tiny": "t"}))
    trials = plan_trials(config, {"tiny": "t", "base": "b"}, "r", "a", parameters={"tiny": 1e6, "base": 20e6})
    assert [t.cost({"tiny": 1e6, "base": 20e6}[t.size]) for t in trials] == sorted(
        (t.cost({"tiny": 1e6, "base": 20e6}[t.size]) for t in trials), reverse=True
    )
    first, last = trials[0], trials[-1]
    assert (first.size, first.method, first.training.steps) == ("base", "cot_labelled", 1000)
    assert (last.size, last.method, last.training.steps) == ("tiny", "finetune", 10)
