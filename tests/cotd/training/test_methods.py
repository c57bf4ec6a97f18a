"""Methods with targets of another kind, or with stages, by students of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from cotd.students.backends.base import TARGET_KINDS
from cotd.students.backends.choose import make_backend
from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.training.collate import collate, information_loss, multi_task_loss
from cotd.training.methods import METHODS
from cotd.training.pairs import training_pairs
from cotd.training.train import train_trial
from tests.cotd.training.helpers import encode_pairs, make_folder, make_trial, train_killed_and_resumed
from tests.tasks import SENTIMENT
from tests.tiny_models import MAKERS

KINDS = ["t5_v1_1", "bart", "llama", "bert"]  # a model of each kind


@pytest.fixture(scope="module")
def soft(examples: pd.DataFrame, annotations: pd.DataFrame) -> pd.DataFrame:
    """The annotations with probabilities: the teacher is sure of most labels, and wrong about none."""
    sure = [[0.8, 0.2] if label == "negative" else [0.2, 0.8] for label in annotations["label"]]
    return annotations.assign(probabilities=sure)


def backend_of(model_folder: Path) -> Any:
    model, tokenizer = load_base(str(model_folder), SENTIMENT.labels)
    return make_backend(model.eval(), tokenizer, SENTIMENT, {})


def loss_of(pairs: pd.DataFrame, backend: Any) -> float:
    batch = collate(encode_pairs(pairs, backend, 64, 64), backend)
    return multi_task_loss(backend, batch["parts"][0], batch["totals"]).item()


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_of_a_soft_label_is_its_answers_losses_by_their_probabilities(
    name: str, base: Any, examples: pd.DataFrame, soft: pd.DataFrame
) -> None:
    backend, train = backend_of(base(name)), examples[examples["split"] == "train"].head(5)
    pairs = training_pairs(METHODS["distill_soft"], train, soft, SENTIMENT)
    assert len(pairs) == 2 * len(train)
    # Both answers have as many tokens, so that each example weighs alike.
    by_hand = [p.weight * loss_of(pairs.iloc[[i]].assign(weight=1.0), backend) for i, p in enumerate(pairs.itertuples())]
    assert loss_of(pairs, backend) == pytest.approx(sum(by_hand) / len(train), rel=1e-4)
    certain = soft.assign(probabilities=[[1.0, 0.0] if label == "negative" else [0.0, 1.0] for label in soft["label"]])
    hard = training_pairs(METHODS["distill"], train, soft, SENTIMENT)
    pd.testing.assert_frame_equal(training_pairs(METHODS["distill_soft"], train, certain, SENTIMENT), hard)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["t5_v1_1", "llama", "bert"])
def test_soft_labels_are_learned_as_probabilities(
    name: str, base: Any, examples: pd.DataFrame, soft: pd.DataFrame, tmp_path: Path
) -> None:
    rate = 5e-3 if MAKERS[name][0] in ("causal", "encoder") else 1e-2
    trial = make_trial(base(name), "distill_soft", steps=120, eval_every=120, learning_rate=rate)
    result = train_trial(trial, make_folder(tmp_path / "soft"), examples, soft)
    assert result["test"]["accuracy"] == 1.0
    student = Student.load(tmp_path / "soft" / "student", device="cpu")
    student.temperature = 1.0
    scores = [p.score for p in student.predict(list(examples.loc[examples["split"] == "train", "text"]))]
    assert sum(scores) / len(scores) == pytest.approx(0.8, abs=0.1), "as sure as its teacher"


@pytest.mark.integration
@pytest.mark.parametrize("name", ["t5_v1_1", "bart", "llama"])
def test_cot_after_answers_in_one_step_and_goes_on_when_asked_why(
    name: str, base: Any, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    rate = 5e-3 if name == "llama" else 1e-2
    trial = make_trial(base(name), "cot_after", steps=240, eval_every=240, max_target_tokens=24, learning_rate=rate)
    result = train_trial(trial, make_folder(tmp_path / "after"), examples, annotations)
    assert result["test"]["accuracy"] == 1.0
    student = Student.load(tmp_path / "after" / "student", device="cpu")
    assert (student.can_explain, student.rationale_before_label, student.answer_kind) == (True, False, "label")
    texts = ["A warm and funny film, number 7.", "A dull and lifeless film, number 7."]
    assert [p.label for p in student.predict(texts)] == ["positive", "negative"]
    warm, dull = student.explain(texts)
    assert (warm.startswith("The reviewer finds it warm"), dull.startswith("The reviewer finds it dull")) == (True, True)
    source, _ = student.backend.sources(texts[:1], "label", 64)
    (alone,) = student.backend.generate(source, "label", 24)
    assert student.tokenizer.decode(alone).strip() == "positive", "asked for a label alone, it ends after it"


@pytest.mark.parametrize("name", ["t5_v1_1", "bart", "llama"])
def test_cot_mi_adds_how_little_each_rationale_tells_of_its_label(
    name: str, base: Any, examples: pd.DataFrame, annotations: pd.DataFrame
) -> None:
    backend, train = backend_of(base(name)), examples[examples["split"] == "train"].head(5)
    pairs = training_pairs(METHODS["cot_mi"], train, annotations, SENTIMENT)
    pd.testing.assert_frame_equal(pairs, training_pairs(METHODS["cot_labelled"], train, annotations, SENTIMENT))

    def added(rows: pd.DataFrame, micro_batch_size: int | None = None) -> float:
        batch = collate(encode_pairs(rows, backend, 64, 64), backend, micro_batch_size)
        parts = [(part, batch["totals"], 0.0, 0.5) for part in batch["parts"]]
        with torch.inference_mode():
            return sum((multi_task_loss(backend, *part, 1.0) - multi_task_loss(backend, *part)).item() for part in parts)

    alone = [added(pairs[pairs["example_id"] == i]) for i in train["id"]]
    assert min(alone) > 0
    assert added(pairs) == pytest.approx(sum(alone), rel=1e-3)
    assert added(pairs, 2) == pytest.approx(sum(alone), rel=1e-3)


def test_the_less_a_rationale_says_of_its_label_the_more_is_lost() -> None:
    """Two tokens of a rationale after the label's one, over a vocabulary of three."""
    kinds, example = (
        torch.tensor([TARGET_KINDS.index(kind) for kind in ("label", "rationale", "rationale")]),
        torch.zeros(3).long(),
    )
    label = [9.0, 0.0, 0.0]
    named, unnamed = ([label, word, [0.0, 0.0, 9.0]] for word in ([9.0, 0.0, 0.0], [0.0, 9.0, 0.0]))
    logits = torch.tensor(unnamed, requires_grad=True)
    lost = information_loss(logits, kinds, example)
    assert lost > information_loss(torch.tensor(named), kinds, example)
    shares = torch.tensor(unnamed).softmax(dim=-1)
    said, written = shares[0], shares[1:].max(dim=0).values
    assert lost.item() == pytest.approx(-(said * written.log_softmax(dim=-1)).sum().item(), rel=1e-5)
    lost.backward()
    assert logits.grad is not None
    assert not logits.grad[0].any(), "the label does not come closer to the rationale"
    assert logits.grad[1:].any()


@pytest.mark.integration
@pytest.mark.parametrize("name", ["t5_v1_1", "llama"])
def test_cot_mi_trains_a_student_that_labels_and_explains(
    name: str, base: Any, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    rate = 5e-3 if name == "llama" else 1e-2
    trial = make_trial(base(name), "cot_mi", steps=120, eval_every=60, max_target_tokens=24, learning_rate=rate)
    folder = make_folder(tmp_path / "mi")
    assert train_trial(trial, folder, examples, annotations)["test"]["accuracy"] == 1.0
    first, last = (point["train_loss"] for point in folder.curve())
    assert last < first
    student = Student.load(folder.student, device="cpu")
    assert student.can_explain
    assert student.explain(["A warm and funny film, number 7."])[0].startswith("The reviewer finds it")


@pytest.mark.thorough
def test_stages_share_the_steps_and_begin_where_the_one_before_ended(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    trial = make_trial(tiny_t5, "distill_then_finetune", learning_rate=1e-3)
    assert [(stage.method, stage.training.steps) for stage in trial.stages] == [("distill", 4), ("finetune", 4)]
    assert [stage.training.steps for stage in make_trial(tiny_t5, "distill_then_finetune", steps=7).stages] == [4, 3]
    whole = make_folder(tmp_path / "whole")
    result = train_trial(trial, whole, examples, annotations)
    assert (result["steps"], result["train_examples"], result["train_pairs"]) == (8, 24, 48)
    assert [point["step"] for point in whole.curve()] == [2, 4, 6, 8]
    assert not whole.checkpoints.exists()
    kept = Student.load(whole.student, device="cpu").model.state_dict()
    for killed_at, resumed in ((4, [4, 6, 8]), (6, [4, 6, 8]), (8, [8])):
        folder = make_folder(tmp_path / f"killed-{killed_at}")
        assert train_killed_and_resumed(killed_at, trial, folder, examples, annotations) == resumed
        again = Student.load(folder.student, device="cpu").model.state_dict()
        assert all(torch.equal(value, again[name]) for name, value in kept.items())
