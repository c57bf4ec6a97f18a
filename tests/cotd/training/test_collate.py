"""A batch in packed parts, and its loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from cotd.students.backends.choose import make_backend
from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.training.collate import collate, multi_task_loss
from cotd.training.methods import METHODS
from cotd.training.pairs import training_pairs
from cotd.training.train import train_trial
from tests.cotd.training.helpers import (
    encode_pairs,
    loss_by_hand,
    make_folder,
    make_trial,
    parameters,
)
from tests.tasks import SENTIMENT


def loss_of(model: Any, pairs: pd.DataFrame, tokenizer: Any, micro_batch_size: int | None, weight: float = 1.0) -> float:
    backend = make_backend(model, tokenizer, SENTIMENT, {})
    batch = collate(encode_pairs(pairs, backend, 64, 64), backend, micro_batch_size)
    return sum(multi_task_loss(backend, part, batch["totals"], rationale_weight=weight).item() for part in batch["parts"])


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_the_loss_is_label_plus_lambda_rationale(
    weight: float, micro_batch_size: int | None, tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame
) -> None:
    model, tokenizer = load_base(str(tiny_t5))
    model.eval()
    train = examples[examples["split"] == "train"].head(5)
    pairs = training_pairs(METHODS["cot_labelled"], train, annotations, SENTIMENT)
    label, rationale = (loss_by_hand(model, tokenizer, pairs[pairs["target_kind"] == t]) for t in ("label", "rationale"))
    assert loss_of(model, pairs, tokenizer, micro_batch_size, weight) == pytest.approx(label + weight * rationale, rel=1e-5)
    for method in ("finetune", "cot_joint"):  # one target a review: λ weighs nothing
        pairs = training_pairs(METHODS[method], train, annotations, SENTIMENT)
        assert loss_of(model, pairs, tokenizer, micro_batch_size, weight) == pytest.approx(
            loss_by_hand(model, tokenizer, pairs), rel=1e-5
        )


@pytest.mark.thorough
def test_the_weight_of_rationales_may_fall_to_nothing(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    settings = {"steps": 4, "eval_every": 4, "precision": "float32", "learning_rate": 1e-2, "rationale_weight": 2.0}
    falling = make_trial(tiny_t5, "cot_labelled", **settings, rationale_schedule="linear")
    assert [falling.training.rationale_weight_at(step) for step in range(4)] == [2.0, 1.5, 1.0, 0.5]
    constant = make_trial(tiny_t5, "cot_labelled", **settings)
    assert falling.id != constant.id
    assert make_trial(tiny_t5, rationale_schedule="linear").id == make_trial(tiny_t5).id, "finetune has no rationales"

    model, tokenizer = load_base(str(tiny_t5))
    model.eval()
    pairs = training_pairs(METHODS["cot_labelled"], examples[examples["split"] == "train"].head(5), annotations, SENTIMENT)
    backend = make_backend(model, tokenizer, SENTIMENT, {})
    batch = collate(encode_pairs(pairs, backend, 64, 64), backend)
    label = loss_by_hand(model, tokenizer, pairs[pairs["target_kind"] == "label"])
    rationale = loss_by_hand(model, tokenizer, pairs[pairs["target_kind"] == "rationale"])
    lost = multi_task_loss(backend, batch["parts"][0], batch["totals"], 0.0, 0.5).item()
    assert lost == pytest.approx(label + 0.5 * rationale, rel=1e-5)

    learnt = {}
    for name, trial in {"falling": falling, "constant": constant}.items():
        folder = make_folder(tmp_path / name)
        train_trial(trial, folder, examples, annotations)
        learnt[name] = parameters(folder)
    assert any(not torch.equal(value, learnt["constant"][key]) for key, value in learnt["falling"].items())


@pytest.mark.integration
def test_a_shared_encoder_reads_an_example_once_and_the_decoder_is_told_what_to_write(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    model, tokenizer = load_base(str(tiny_t5))
    model.eval()
    train = examples[examples["split"] == "train"].head(5)
    pairs = training_pairs(METHODS["cot_labelled"], train, annotations, SENTIMENT)
    asked = tokenizer(SENTIMENT.rationale_prefix, add_special_tokens=False)["input_ids"]
    label = loss_by_hand(model, tokenizer, pairs[pairs["target_kind"] == "label"])
    rationale = loss_by_hand(model, tokenizer, pairs[pairs["target_kind"] == "rationale"], asked)
    backend = make_backend(model, tokenizer, SENTIMENT, {"shared_encoder": True})
    batch = collate(encode_pairs(pairs, backend, 64, 64), backend)
    (part,) = batch["parts"]
    assert len(part["input_lengths"]) == len(train)
    loss = multi_task_loss(backend, part, batch["totals"], rationale_weight=2.0)
    assert loss.item() == pytest.approx(label + 2 * rationale, rel=1e-5)

    folder, apart = make_folder(tmp_path / "shared"), make_trial(tiny_t5, "cot_labelled", steps=60, eval_every=60)
    trial = make_trial(tiny_t5, "cot_labelled", steps=60, eval_every=60, shared_encoder=True)
    assert trial.id != apart.id
    assert make_trial(tiny_t5, shared_encoder=True).id == make_trial(tiny_t5).id, "finetune has nothing to share"
    train_trial(trial, folder, examples, annotations)
    student, heard = Student.load(folder.student, device="cpu"), []
    text = train["text"].iloc[0]
    (written,) = student.explain([text])
    student.stream_rationale(text, heard.append)
    assert written.startswith("The reviewer finds it")
    assert "".join(heard).strip() == written


@pytest.mark.thorough
def test_a_batch_in_parts_trains_the_same(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    exact = {"precision": "float32"}  # sums of bfloat16 gradients differ
    whole = make_trial(tiny_t5, "cot_labelled", **exact)
    parts = make_trial(tiny_t5, "cot_labelled", micro_batch_size=3, gradient_checkpointing=True, **exact)
    assert whole.id == parts.id
    folders = [make_folder(tmp_path / name) for name in ("whole", "parts")]
    for trial, folder in zip((whole, parts), folders, strict=True):
        train_trial(trial, folder, examples, annotations)
    expected = parameters(folders[0])
    for name, value in parameters(folders[1]).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)


@pytest.mark.integration
def test_lambda_zero_trains_what_finetune_trains(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path: Path
) -> None:
    folders = {name: make_folder(tmp_path / name) for name in ("finetune", "zero", "half")}
    # Both methods round alike up to the order of their sums, which processors without AVX-512 have otherwise; larger steps would
    # have Adam magnify that.
    steps = {"steps": 50, "eval_every": 50, "precision": "float32", "max_target_tokens": 16, "learning_rate": 5e-4}
    train_trial(make_trial(tiny_t5, **steps), folders["finetune"], examples, None)
    train_trial(make_trial(tiny_t5, "cot_labelled", **steps, rationale_weight=0), folders["zero"], examples, annotations)
    train_trial(make_trial(tiny_t5, "cot_labelled", **steps, rationale_weight=0.5), folders["half"], examples, annotations)
    expected, half, base = parameters(folders["finetune"]), parameters(folders["half"]), load_base(str(tiny_t5))[0]
    for name, value in parameters(folders["zero"]).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
    assert max((half[name] - expected[name]).abs().max().item() for name in half) > 1e-3
    assert any(not torch.equal(value, expected[name]) for name, value in base.named_parameters())
