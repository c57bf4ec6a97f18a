"""What one training step computes: the pairs of a batch of examples in parts, and the multi-task loss over them.

L = L_label + λ L_rationale, both the mean token cross-entropy of the target sequences (Hsieh et al. 2023, equation 3;
λ is `training.rationale_weight`). Rationale and label as one target have the single loss of that sequence. A label's loss against a
teacher's probabilities is the mean of its answers' losses by them (Hinton et al. 2015). A method may add how little an example's
rationale tells of its label, see `information_loss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cotd.students.backends.base import IGNORED, TARGET_KINDS, Backend, Pair


def collate(
    rows: Sequence[dict[str, Any]],
    backend: Backend,
    micro_batch_size: int | None = None,
    worker: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """A batch of examples in packed parts.

    Args:
        rows: of `EncodedPairs`.
        micro_batch_size: examples in a part, whose gradients are computed together; all by default.
        worker: (rank, number of workers). Each takes every n-th example, so that their lengths are alike, and perhaps none.

    Returns:
        `totals` (K,): the target tokens of each target kind by the weights of their pairs, over all workers. `examples`: how many
        there are, of all workers. `parts`: what the backend's `pack` gives of each, and its `example_ids`.
    """

    def total(kind: str) -> float:
        return sum(len(target) * weight for row in rows for _, target, weight in row[kind])

    rank, workers = worker
    own = list(rows[rank::workers])
    size = micro_batch_size or max(1, len(own))
    if size < len(own):  # parts of like length have little padding
        own.sort(key=tokens, reverse=True)
    parts = []
    for start in range(0, len(own), size):
        part = own[start : start + size]
        pairs = [[Pair(number, *pair) for number, kind in enumerate(TARGET_KINDS) for pair in row[kind]] for row in part]
        parts.append({"example_ids": [row["example_id"] for row in part], **backend.pack(pairs)})
    totals = torch.tensor([total(kind) for kind in TARGET_KINDS], dtype=torch.float32)
    return {"totals": totals, "examples": torch.tensor(len(rows)), "parts": parts}


def tokens(row: dict[str, Any]) -> int:
    """The tokens of an example's pairs."""
    return sum(len(source) + len(target) for kind in TARGET_KINDS for source, target, _ in row[kind])


def multi_task_loss(
    backend: Backend,
    part: dict[str, Any],
    totals: Tensor,
    label_smoothing: float = 0.0,
    rationale_weight: float = 1.0,
    information_weight: float = 0.0,
) -> Tensor:
    """What a part adds to its batch's loss: each target kind's mean token cross-entropy over the whole batch times its weight.

    Args:
        totals: those of the batch, of all parts and workers.
        rationale_weight: λ at this step.
        information_weight: of each example's `information_loss`.
    """
    learned = part["labels"] != IGNORED
    factors = totals.new_tensor([rationale_weight if kind == "rationale" else 1.0 for kind in TARGET_KINDS]) / totals.clamp_min(
        1
    )
    weights = factors[part["target_kinds"][learned]] * part["target_weights"][learned]  # (L,)
    if not information_weight:
        return backend.loss(part, weights, label_smoothing)
    logits = backend.logits(part, learned)
    losses = functional.cross_entropy(logits, part["labels"][learned], reduction="none", label_smoothing=label_smoothing)
    told = information_loss(logits, part["target_kinds"][learned], part["target_examples"][learned])
    return (losses * weights).sum() + information_weight * told


def information_loss(logits: Tensor, kinds: Tensor, examples: Tensor) -> Tensor:
    """How little the rationales, as the student writes them, tell of the labels: a bound on their mutual information.

    Chen et al. 2024, "Learning to Maximize Mutual Information for Chain-of-Thought Distillation", section 3, as their code has it:
    of a target's tokens, the largest probability that each word of the vocabulary has at any. The rationale's, taken as logits, have
    their cross-entropy with the label's, of which no gradient is computed.

    Args:
        logits: (L, V) at the learned tokens. kinds: (L,) positions in TARGET_KINDS. examples: (L,) numbers from 0.

    Returns:
        A scalar, the sum over examples.
    """
    probabilities = logits.softmax(dim=-1)

    def largest(kind: str) -> Tensor:
        here = kinds == TARGET_KINDS.index(kind)
        none = logits.new_zeros(int(examples.max()) + 1, logits.shape[1])
        rows = examples[here, None].expand(-1, logits.shape[1])
        return none.scatter_reduce(0, rows, probabilities[here], "amax")

    return functional.cross_entropy(largest("rationale"), largest("label").detach(), reduction="sum")
