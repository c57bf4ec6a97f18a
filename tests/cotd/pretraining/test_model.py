"""The T5 with its heads towards the teachers: what its losses are measured in, and what is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cotd.pretraining.config import ShapeConfig
from cotd.pretraining.model import PretrainingT5, t5_config

SHAPE = ShapeConfig(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)


@pytest.fixture
def model(tmp_path: Path) -> PretrainingT5:
    """Loaded from a folder, as training loads it, with heads that predict the mean."""
    config = t5_config(SHAPE, 50, 0.0)
    config.teacher_widths = {"answer": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = PretrainingT5(config)
    with torch.no_grad():
        made.answer_head.weight.zero_()
        made.answer_head.bias.zero_()
        made.answer_mean.fill_(2.0)
        made.answer_spread.fill_(3.0)
    made.save_pretrained(tmp_path)
    loaded = PretrainingT5.from_pretrained(tmp_path)
    loaded.freeze_statistics()
    return loaded


def test_an_error_of_one_is_what_predicting_the_mean_gives(model: PretrainingT5) -> None:
    torch.manual_seed(0)
    targets = 2.0 + 3.0 * torch.randn(5000, 4)
    states = torch.randn(5000, 16)
    assert float(model.regression_loss("answer", states, targets).mean()) == pytest.approx(1, rel=0.03)


def batch(shares: list[list[float]]) -> dict[str, torch.Tensor | str]:
    count = len(shares)
    return {
        "kind": "answer", "input_ids": torch.arange(count * 5).reshape(count, 5) % 40 + 3,
        "attention_mask": torch.ones(count, 5, dtype=torch.long), "components": torch.full((count, 4), 5.0),
        "shares": torch.tensor(shares), "label_pieces": torch.tensor([7, 9]),
    }  # fmt: skip


def test_what_the_errors_are_measured_in_is_not_trained(model: PretrainingT5) -> None:
    torch.stack(list(model.losses(batch([[0.9, 0.1], [0.2, 0.8]]), None).values())).sum().backward()
    assert model.answer_head.weight.grad is not None
    for statistic in (model.answer_mean, model.answer_spread):
        assert statistic.grad is None
        assert not statistic.requires_grad


def test_the_label_loss_is_the_divergence_from_the_teacher_s_answer(model: PretrainingT5) -> None:
    shares = [[0.9, 0.1], [0.5, 0.5], [0.0, 1.0]]
    made = batch(shares)
    loss = float(model.losses(made, None)["label"])
    out = model(input_ids=made["input_ids"], attention_mask=made["attention_mask"], decoder_input_ids=torch.zeros(3, 1).long())
    predicted = out.logits[:, 0].log_softmax(-1)[:, [7, 9]]
    by_hand = [
        sum(q * (torch.tensor(q).log() - p) for q, p in zip(row, scores, strict=True) if q > 0)
        for row, scores in zip(shares, predicted, strict=True)
    ]
    assert loss == pytest.approx(float(sum(by_hand)) / 3, rel=1e-4)


def test_rows_are_written_as_transformers_writes_them(model: PretrainingT5) -> None:
    """Padded inputs and padded targets, the loss and its gradients."""
    torch.manual_seed(1)
    mask = (torch.arange(9) < torch.tensor([9, 5, 7])[:, None]).long()
    labels = torch.randint(3, 50, (3, 6)).masked_fill(torch.arange(6) >= torch.tensor([2, 6, 1])[:, None], -100)
    made = {"kind": "denoise", "input_ids": torch.randint(3, 50, (3, 9)) * mask, "attention_mask": mask, "labels": labels}
    found = []
    for loss in (
        model.losses(made, None)["denoise"],
        model(input_ids=made["input_ids"], attention_mask=mask, labels=labels).loss,
    ):
        model.zero_grad()
        loss.backward()
        bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        found.append((loss.detach(), model.shared.weight.grad.clone(), bias.weight.grad.clone()))
    for own, theirs in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs)
