"""Cross-entropy of target tokens without all their logits at once, which for 2,000 tokens of T5's vocabulary are 260 MB.

Known on GPUs as fused linear cross-entropy (Hsu et al. 2024, Liger Kernel). Hand-written as that has no kernel for processors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Logits computed at once on a processor: 31 MiB of them. Matrix products of half as many take two fifths longer a token, and
# an allocation of more than 32 MiB is returned to the kernel by glibc each time.
CHUNK_LOGITS = 31 * 2**18


def token_loss(states: Tensor, output: Tensor, labels: Tensor, weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Σ weights · cross-entropy of softmax(states · outputᵀ): what `torch.nn.functional.cross_entropy` gives.

    Args:
        states: (L, d) what the output layer reads. output: (V, d) its weights.
        labels: (L,). weights: (L,), of which no gradient is computed.
        label_smoothing: the fraction of the target that is spread over the vocabulary.

    Returns:
        A float32 scalar.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    with torch.autocast(device, enabled=False):
        return _TokenLoss.apply(states.to(dtype), output, labels, weights, label_smoothing, torch.is_grad_enabled())


class _TokenLoss(torch.autograd.Function):
    """Computes gradients in the forward pass, while the logits are there; the backward pass only scales them."""

    @staticmethod
    def forward(
        context: Any, states: Tensor, output: Tensor, labels: Tensor, weights: Tensor, smoothing: float, with_gradients: bool
    ) -> Tensor:
        total = torch.zeros((), device=states.device)
        vocabulary = output.to(states.dtype)
        to_states = torch.empty_like(states)
        to_output: Tensor | None = None
        step = max(1, CHUNK_LOGITS // len(output)) if states.device.type == "cpu" else max(1, len(states))
        for start in range(0, len(states), step):
            part = slice(start, start + step)
            chunk, label, weight = states[part], labels[part, None], weights[part, None]
            logs = torch.log_softmax((chunk @ vocabulary.T).float(), dim=-1)  # (l, V)
            losses = -logs.gather(1, label)
            if smoothing:
                losses = (1 - smoothing) * losses - smoothing * logs.mean(dim=1, keepdim=True)
            total += (losses * weight).sum()
            if not with_gradients:
                continue
            error = logs.exp_()  # the logits' gradient before weights: probabilities minus targets
            if smoothing:
                error -= smoothing / len(output)
            error.scatter_add_(1, label, torch.full_like(weight, smoothing - 1, dtype=error.dtype).expand_as(label))
            error = error.mul_(weight).to(states.dtype)
            torch.mm(error, vocabulary, out=to_states[part])
            if not context.needs_input_grad[1]:  # the output layer is not trained
                continue
            if to_output is None:
                to_output = (error.T @ chunk).to(output.dtype)
            elif error.dtype == to_output.dtype:
                to_output.addmm_(error.T, chunk)
            else:
                to_output += error.T @ chunk
        if with_gradients:
            context.save_for_backward(to_states, torch.zeros_like(output) if to_output is None else to_output)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        to_states, to_output = context.saved_tensors
        # In place, as they are large; PyTorch sees that they have changed, and refuses a second backward pass.
        return to_states * gradients[0].to(to_states.dtype), to_output.mul_(gradients[0]), None, None, None, None
