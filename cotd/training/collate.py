"""What one training step computes: the pairs of a batch of examples in parts, and the multi-task loss over them.

L = L_label + λ L_rationale, both the mean token cross-entropy of the target sequences (Hsieh et al. 2023, equation 3;
λ is `training.rationale_weight`). Rationale and label as one target have the single loss of that sequence. A label's loss against a
teacher's probabilities is the mean of its answers' losses by them (Hinton et al. 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
        `totals` (K,): the target tokens of each target kind by the weights of their pairs, over all workers. `parts`: what the
        backend's `pack` gives of each, and its `example_ids`.
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
    return {"totals": torch.tensor([total(kind) for kind in TARGET_KINDS], dtype=torch.float32), "parts": parts}


def tokens(row: dict[str, Any]) -> int:
    """The tokens of an example's pairs."""
    return sum(len(source) + len(target) for kind in TARGET_KINDS for source, target, _ in row[kind])


def multi_task_loss(
    backend: Backend, part: dict[str, Any], totals: Tensor, label_smoothing: float = 0.0, rationale_weight: float = 1.0
) -> Tensor:
    """What a part adds to its batch's loss: each target kind's mean token cross-entropy over the whole batch times its weight.

    Args:
        totals: those of the batch, of all parts and workers.
        rationale_weight: λ at this step.
    """
    learned = part["labels"] != IGNORED
    factors = totals.new_tensor([rationale_weight if kind == "rationale" else 1.0 for kind in TARGET_KINDS]) / totals.clamp_min(
        1
    )
    weights = factors[part["target_kinds"][learned]] * part["target_weights"][learned]  # (L,)
    return backend.loss(part, weights, label_smoothing)
