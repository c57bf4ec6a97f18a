"""Hand-written layers against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from cotd.students.backends.t5.dropout import dropout
from cotd.students.backends.t5.rms_norm import rms_norm


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_zeroes_at_its_rate_keeps_the_mean_and_passes_gradients_alike(rate: float) -> None:
    torch.manual_seed(0)
    hidden = torch.ones(1000, 101, requires_grad=True)
    dropped = dropout(hidden, rate, training=True)
    assert dropped.eq(0).float().mean().item() == pytest.approx(rate, abs=0.01)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / (1 - rate))]
    dropped.sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, dropped)
    assert not torch.equal(dropout(hidden, rate, training=True), dropped)
    assert dropout(hidden, rate, training=False) is hidden


def test_rms_norm_and_its_gradients_are_pytorchs() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 16, requires_grad=True), torch.randn(16, requires_grad=True)
    outward = torch.randn(7, 16)
    results = []
    for layer in (rms_norm(hidden, weight, 1e-6), functional.rms_norm(hidden, (16,), weight, 1e-6)):
        results.append([layer, *torch.autograd.grad((layer * outward).sum(), [hidden, weight])])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected)
