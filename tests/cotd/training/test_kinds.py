"""Students of every kind learn, answer, explain, and are what they were when they are loaded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from cotd.data.examples import build_examples
from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.tasks.base import Task
from cotd.training.folder import TrialFolder
from cotd.training.train import train_trial
from cotd.training.trial import Trial
from tests.cotd.training.helpers import make_folder, make_trial, parameters
from tests.tasks import QUIZ, SENTIMENT, SUMS
from tests.tiny_models import MAKERS

pytestmark = pytest.mark.thorough
TEXTS = ["A warm and funny film, number 7.", "A dull and lifeless film, number 7."]
# So many steps teach a random model of a few thousand weights two dozen examples.
SETTINGS: dict[str, dict[str, Any]] = {
    "t5": {"steps": 120, "learning_rate": 1e-2},
    "seq2seq": {"steps": 160, "learning_rate": 1e-2},
    "causal": {"steps": 100, "learning_rate": 5e-3},
    "encoder": {"steps": 60, "learning_rate": 5e-3},
}
SLOW = pytest.mark.integration
# What a film is like decides which option, or which number, is right.
ANSWERS = {"quiz": {"positive": "right", "negative": "wrong"}, "sums": {"positive": "1000", "negative": "7"}}


def trial_of(name: str, base: Any, method: str) -> Trial:
    settings = dict(SETTINGS[MAKERS[name][0]])
    if method == "cot_joint":  # a longer target takes longer
        settings["steps"] *= 2
    return make_trial(base(name), method, **settings, eval_every=settings["steps"], max_target_tokens=24)


def learned(trial: Trial, path: Path, examples: pd.DataFrame, annotations: pd.DataFrame | None) -> TrialFolder:
    folder = make_folder(path)
    train_trial(trial, folder, examples, annotations)
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[SLOW] if n in ("mt5", "gpt2", "gemma2", "qwen2") else []) for n in MAKERS]
)
def test_labels_and_rationales_are_learned(
    name: str, base: Any, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    kind = MAKERS[name][0]
    method = "finetune" if kind == "encoder" else "cot_labelled"
    folder = learned(trial_of(name, base, method), tmp_path / "trial", examples, annotations)
    student = Student.load(folder.student, device="cpu")
    assert student.backend.kind == kind
    assert folder.result()["test"]["accuracy"] == 1.0
    assert [p.label for p in student.predict(TEXTS)] == ["positive", "negative"]
    assert student.can_explain == (kind != "encoder")
    if student.can_explain:
        warm, dull = student.explain(TEXTS)
        assert "warm" in warm
        assert "dull" in dull
        parts: list[str] = []
        student.stream_rationale(TEXTS[0], parts.append)
        assert "".join(parts).strip() == warm


@SLOW
@pytest.mark.slow
def test_smollm2_learns_labels_and_rationales(examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 24, "eval_every": 24, "max_target_tokens": 24, "finetune": {"last_layers": 10}}
    trial = make_trial("embedded:smollm2-135m-instruct", "cot_labelled", **settings)
    folder = learned(trial, tmp_path / "trial", examples, annotations)
    student = Student.load(folder.student, device="cpu")
    assert student.backend.kind == "causal"
    assert folder.result()["test"]["accuracy"] == 1.0
    assert [p.label for p in student.predict(TEXTS)] == ["positive", "negative"]
    warm, dull = student.explain(TEXTS)
    assert "warm" in warm
    assert "dull" in dull


@SLOW
@pytest.mark.parametrize("name", ["bart", "llama"])
def test_a_rationale_before_the_answer_is_learned(
    name: str, base: Any, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    folder = learned(trial_of(name, base, "cot_joint"), tmp_path / "trial", examples, annotations)
    student = Student.load(folder.student, device="cpu")
    assert folder.result()["test"]["accuracy"] == 1.0
    assert [p.label for p in student.predict(TEXTS)] == ["positive", "negative"]
    assert "dull" in student.explain(TEXTS)[1]


@pytest.mark.parametrize("task", [QUIZ, SUMS], ids=lambda task: task.name)
@pytest.mark.parametrize("name", ["llama"])
def test_options_by_row_and_free_answers_are_learned(
    name: str, task: Task, base: Any, example_rows: pd.DataFrame, tmp_path: Path
) -> None:
    rows = example_rows.assign(label=example_rows["label"].map(ANSWERS[task.name]))
    choices = None
    if task.needs_choices:
        rows["choices"] = [["right", "wrong"][:: 1 if i % 3 else -1] for i in range(len(rows))]
        choices = [["wrong", "right"], ["right", "wrong"]]
    trial = replace(trial_of(name, base, "finetune"), task=task.to_dict())
    folder = learned(trial, tmp_path / "trial", build_examples(rows, task.name, task).table, None)
    assert folder.result()["test"]["accuracy"] == 1.0
    answers = Student.load(folder.student, device="cpu").predict(TEXTS, choices=choices)
    assert [p.label for p in answers] == list(ANSWERS[task.name].values())
    assert [p.score is None for p in answers] == [task.free_answers] * 2


@pytest.mark.parametrize("finetune", [{"last_layers": 1}, {"lora": {"rank": 2}}], ids=["last layers", "LoRA"])
@pytest.mark.parametrize("name", ["llama", "bert", pytest.param("t5_v1_1", marks=SLOW), pytest.param("bart", marks=SLOW)])
def test_a_part_of_the_weights_is_trained_and_a_plain_model_saved(
    name: str, finetune: dict[str, Any], base: Any, examples: pd.DataFrame, tmp_path: Path
) -> None:
    trial = make_trial(base(name), steps=4, eval_every=4, learning_rate=1e-2, finetune=finetune)
    student = Student.load(learned(trial, tmp_path / "trial", examples, None).student, device="cpu")
    torch.manual_seed(trial.seed)  # of an encoder's new head
    before, after = (
        dict(model.named_parameters()) for model in (load_base(str(base(name)), SENTIMENT.labels)[0], student.model)
    )
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.allclose(before[key], after[key], atol=1e-6)}
    assert changed
    assert not any("embed" in key or "shared" in key for key in changed)
    if "last_layers" in finetune and name in ("llama", "bert"):
        assert not any(".layers.0." in key or ".layer.0." in key for key in changed)


def test_layers_computed_twice_give_the_same_student(base: Any, examples: pd.DataFrame, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 4, "eval_every": 4, "precision": "float32"}
    trials = [make_trial(base("llama"), **settings, gradient_checkpointing=twice) for twice in (False, True)]
    once, twice = (learned(trial, tmp_path / str(i), examples, None) for i, trial in enumerate(trials))
    first, second = parameters(once), parameters(twice)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)
