from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cotd.data.examples import select_fraction
from cotd.study.config import load_config
from cotd.study.trials import plan_trials
from cotd.training.folder import TrialFolder
from cotd.training.trial import Trial

GRID = "grid={method: [finetune, cot_labelled], fraction: [0.1, 1.0], size: [tiny], seed: [0]}"


@pytest.fixture
def plan(write_study: Callable[..., Path]) -> Callable[..., dict[tuple[str, float], str]]:
    """(method, fraction) → trial id, for a study with overrides and digests."""

    def make(
        *overrides: str, base: str = "b", reviews: str = "r", annotations: str | None = "a"
    ) -> dict[tuple[str, float], str]:
        config = load_config(write_study(), [GRID, *overrides])
        trials = plan_trials(config, dict.fromkeys(config.grid.size, base), reviews, annotations)
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
        "grid.seed=[1]",
    ],
)
def test_an_id_changes_with_the_training(plan: Ids, override: str) -> None:
    assert not set(plan(override).values()) & set(plan().values())


def test_trials_of_versions_before_a_setting_was_new_are_found() -> None:
    training = {
        "steps": 300, "batch_size": 32, "micro_batch_size": None, "gradient_checkpointing": False, "optimizer": "scaled_adamw",
        "schedule": "linear", "learning_rate": 0.002, "warmup_steps": 20, "weight_decay": 0.01, "rationale_weight": 0.5,
        "shared_encoder": False, "dropout": 0.1, "label_smoothing": 0.0, "eval_every": 50, "patience": None,
        "max_input_tokens": 128, "max_target_tokens": 64, "precision": "auto",
    }  # fmt: skip
    plain = {
        "method": "cot_labelled", "fraction": 1.0, "size": "tiny", "seed": 0, "model": "m", "training": training,
        "task": "sentiment", "base_digest": "b", "reviews_digest": "r", "annotations_digest": "a", "samples": None,
        "filters": None, "varied": {},
    }  # fmt: skip
    assert Trial.from_dict(plain).id == "d29e44d8826118d2", "what it was before rationale_schedule and truncation"


def test_an_id_changes_with_what_is_trained_on(plan: Ids) -> None:
    before = set(plan().values())
    assert len(before) == 4
    assert not set(plan(base="other").values()) & before
    assert not set(plan(reviews="other").values()) & before


def test_another_teacher_does_not_make_finetune_train_again(plan: Ids) -> None:
    before, after = plan(), plan(annotations="other")
    assert {cell for cell in before if before[cell] == after[cell]} == {("finetune", 0.1), ("finetune", 1.0)}
    assert plan(annotations=None)["finetune", 0.1] == before["finetune", 0.1]


def test_the_grid_is_planned_once_each_the_expensive_first(write_study: Callable[..., Path]) -> None:
    grid = "grid={method: [finetune, cot_labelled, finetune], fraction: [0.1, 1, 1.0], size: [tiny, base], seed: [0, 1]}"
    trials = plan_trials(load_config(write_study(), [grid]), {"tiny": "t", "base": "b"}, "r", "a")
    assert len(trials) == len({t.id for t in trials}) == 2 * 2 * 2 * 2
    assert {t.size for t in trials[:8]} == {"base"}
    assert {t.method for t in trials[:4]} == {"cot_labelled"}


def test_fractions_are_nested_and_sized(rotten_tomatoes: Path) -> None:
    from cotd.data.sources import embedded_reviews

    train = embedded_reviews("rotten-tomatoes").split("train")
    parts = [select_fraction(train, f)["id"].to_list() for f in (0.01, 0.1, 0.5, 1.0)]
    assert [len(p) for p in parts] == [round(len(train) * f) for f in (0.01, 0.1, 0.5, 1.0)]
    for small, large in itertools.pairwise(parts):
        assert set(small) < set(large)
    tenth = select_fraction(train, 0.1)
    assert (tenth["label"] == "positive").mean() == pytest.approx((train["label"] == "positive").mean(), abs=0.05)
    assert len(select_fraction(train.head(3), 0.1)) == 1


@pytest.fixture
def trial(write_study: Callable[..., Path]) -> Trial:
    return plan_trials(load_config(write_study()), {"tiny": "b"}, "r", None)[0]


def test_a_folder_gives_its_trial_back(trial: Trial, write_study: Callable[..., Path], tmp_path: Path) -> None:
    config = load_config(write_study())
    folder = TrialFolder(tmp_path / "trials" / trial.id)
    folder.write_trial(trial, config.model_dump())
    assert folder.trial() == trial
    assert folder.trial().id == trial.id
    assert folder.config() == json.loads(config.model_dump_json())
    assert not folder.done
    folder.write_result({"test": {"accuracy": 0.5}})
    assert folder.done
    assert folder.result() == {"test": {"accuracy": 0.5}}
    assert sorted(p.name for p in folder.path.iterdir()) == ["result.json", "trial.json"]


def test_the_curve_survives_a_kill(tmp_path: Path) -> None:
    """A killed attempt leaves half a line, and its successor scores some steps again."""
    folder = TrialFolder(tmp_path)
    assert folder.curve() == []
    lines = ['{"step": 10, "validation_accuracy": 0.5}', '{"step": 20, "validation_accuracy": 0.6}', '{"step": 30, "valida']
    again = ['{"step": 20, "validation_accuracy": 0.7}', '{"step": 30, "validation_accuracy": 0.8}']
    folder.metrics.write_text("\n".join([*lines, *again]) + "\n")
    assert pd.DataFrame(folder.curve()).values.tolist() == [[10, 0.5], [20, 0.7], [30, 0.8]]
    folder.metrics.write_text("\n".join(lines))
    folder.add_point({"step": 40, "validation_accuracy": 0.9})
    assert [point["step"] for point in folder.curve()] == [10, 20, 40], "on a line of its own"
