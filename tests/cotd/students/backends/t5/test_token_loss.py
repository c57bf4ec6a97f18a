"""The loss over target tokens, a few of whose logits are there at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from cotd.students.backends.t5 import token_loss as module
from cotd.students.backends.t5.token_loss import token_loss


def tokens(count: int) -> tuple[Any, Any, Any, Any]:
    """states, output, labels, weights of so many tokens out of a vocabulary of 50."""
    torch.manual_seed(count)
    states, output = torch.randn(count, 8), torch.randn(50, 8)
    return states.requires_grad_(), output.requires_grad_(), torch.randint(0, 50, (count,)), torch.rand(count)


@given(st.integers(1, 12), st.integers(1, 13), st.sampled_from([0.0, 0.1]), st.sampled_from([1.0, 3.0]))
def test_loss_and_gradients_are_those_of_all_logits(count: int, at_once: int, smoothing: float, factor: float) -> None:
    states, output, labels, weights = tokens(count)
    losses = functional.cross_entropy(states @ output.T, labels, reduction="none", label_smoothing=smoothing)
    expected = (losses * weights).sum()
    expected_gradients = torch.autograd.grad(expected * factor, [states, output])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_LOGITS", 50 * at_once)
        found = token_loss(states, output, labels, weights, smoothing)
        gradients = torch.autograd.grad(found * factor, [states, output])
        with torch.no_grad():
            assert token_loss(states, output, labels, weights, smoothing).item() == found.item()
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_certain_and_hopeless_tokens_have_finite_gradients() -> None:
    states = torch.tensor([[300.0, 0.0], [0.0, 300.0]], requires_grad=True)
    loss = token_loss(states, torch.eye(2, requires_grad=True), torch.tensor([0, 0]), torch.ones(2))
    assert loss.item() == pytest.approx(300.0)
    loss.backward()
    assert states.grad is not None
    torch.testing.assert_close(states.grad, torch.tensor([[0.0, 0.0], [-1.0, 1.0]]))


def test_under_autocast_it_is_computed_in_bfloat16_and_kept_in_float32() -> None:
    states, output, labels, weights = tokens(6)
    exact = token_loss(states, output, labels, weights)
    exact_gradient = torch.autograd.grad(exact, output)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = token_loss(states, output, labels, weights)
    gradient = torch.autograd.grad(rough, output)[0]
    assert (rough.dtype, gradient.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.02)
    torch.testing.assert_close(gradient, exact_gradient, rtol=0.05, atol=0.05)
    assert not torch.equal(gradient, exact_gradient)
