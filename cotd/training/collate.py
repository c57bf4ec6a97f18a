"""What one training step computes: the pairs of a batch of examples, packed, and the multi-task loss over them.

L = L_label + λ L_rationale, both the mean token cross-entropy of the target sequences (Hsieh et al. 2023, equation 3;
λ is `training.rationale_weight`). Rationale and label as one target have the single loss of that sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from cotd.students.backends.t5.packed import token_states
from cotd.students.backends.t5.token_loss import token_loss
from cotd.training.pairs import TARGET_KINDS

# The models that `cotd.students.backends.t5.packed` computes; others are computed with padding.
PACKED = ("t5", "mt5")
INPUTS = ("input_ids", "input_lengths", "sources", "decoder_input_ids", "target_lengths")
IGNORED = -100  # the label of a token that is not learned


def collate(
    rows: Sequence[dict[str, Any]],
    decoder_start: int,
    micro_batch_size: int | None = None,
    rationale_prompt: Sequence[int] = (),
    worker: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """A batch of examples in packed parts.

    Args:
        rows: of `EncodedPairs`.
        decoder_start: the token that each decoder input begins with.
        micro_batch_size: examples in a part, whose gradients are computed together; all by default.
        rationale_prompt: what the decoder reads before it writes a rationale, for students with a shared encoder.
        worker: (rank, number of workers). Each takes every n-th example, so that their lengths are alike, and perhaps none.

    Returns:
        `totals` (K, 3): the sum of pair weights, pairs and target tokens of each target kind, over all workers. `parts`: see
        `pack`.
    """

    def total(kind: str) -> list[float]:
        pairs = [pair for row in rows for pair in row[kind]]
        return [sum(weight for *_, weight in pairs), len(pairs), sum(len(target) for _, target, _ in pairs)]

    rank, workers = worker
    worker_rows = rows[rank::workers]
    size = micro_batch_size or len(rows)
    parts = [
        pack(worker_rows[start : start + size], decoder_start, rationale_prompt) for start in range(0, len(worker_rows), size)
    ]
    return {"totals": torch.tensor([total(kind) for kind in TARGET_KINDS], dtype=torch.float32), "parts": parts}


def pack(rows: Sequence[dict[str, Any]], decoder_start: int, rationale_prompt: Sequence[int]) -> dict[str, Any]:
    """The pairs of some examples with sequences one after another, the longest first, without padding.

    Returns:
        `example_ids`; `input_ids` (N,) and `input_lengths` (I,) of the distinct inputs; `sources` (P,) the input of each pair;
        `decoder_input_ids` (M,); `labels` (M,), IGNORED where nothing is learned; `target_lengths` (P,); `target_kinds` (M,),
        positions in TARGET_KINDS.
    """
    pairs = [(number, *pair) for number, kind in enumerate(TARGET_KINDS) for row in rows for pair in row[kind]]
    # The samples of an example share their input, which is encoded once.
    inputs = sorted(dict.fromkeys(tuple(source) for _, source, _, _ in pairs), key=len, reverse=True)
    positions = {source: position for position, source in enumerate(inputs)}
    pairs.sort(key=lambda pair: len(pair[2]), reverse=True)
    prompts = [list(rationale_prompt) if TARGET_KINDS[number] == "rationale" else [] for number, _, _, _ in pairs]
    targets = [target for _, _, target, _ in pairs]
    decoder_inputs = [[decoder_start, *prompt, *target[:-1]] for prompt, target in zip(prompts, targets, strict=True)]
    labels = [[IGNORED] * len(prompt) + target for prompt, target in zip(prompts, targets, strict=True)]
    lengths = torch.tensor([len(ids) for ids in decoder_inputs])
    return {
        "example_ids": [row["example_id"] for row in rows],
        "input_ids": torch.tensor(list(chain.from_iterable(inputs))),
        "input_lengths": torch.tensor([len(source) for source in inputs]),
        "sources": torch.tensor([positions[tuple(source)] for _, source, _, _ in pairs]),
        "decoder_input_ids": torch.tensor(list(chain.from_iterable(decoder_inputs))),
        "labels": torch.tensor(list(chain.from_iterable(labels))),
        "target_lengths": lengths,
        "target_kinds": torch.tensor([number for number, _, _, _ in pairs]).repeat_interleave(lengths),
    }


def multi_task_loss(
    model: Any, part: dict[str, Any], totals: Tensor, label_smoothing: float = 0.0, rationale_factor: float = 1.0
) -> Tensor:
    """What a part adds to its batch's loss: each target kind's mean token cross-entropy over the whole batch times its weight.

    Args:
        totals: those of the batch, of all parts and workers.
        rationale_factor: multiplies the weight of rationales: a schedule's fraction of λ at this step.
    """
    learned = part["labels"] != IGNORED
    labels, kinds = part["labels"][learned], part["target_kinds"][learned]
    sums, pairs, tokens = totals.unbind(1)
    factors = sums.new_tensor([rationale_factor if kind == "rationale" else 1.0 for kind in TARGET_KINDS])
    weights = (factors * sums / (pairs * tokens).clamp_min(1))[kinds]  # (L,)
    inputs = {name: part[name] for name in INPUTS}
    if model.config.model_type in PACKED:
        states = token_states(model, **inputs, chosen=learned)
        return token_loss(states, model.lm_head.weight, labels, weights, label_smoothing)
    logits = padded_logits(model, **inputs, chosen=learned).float()
    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    return (losses * weights).sum()


def padded_logits(
    model: Any,
    input_ids: Tensor,
    input_lengths: Tensor,
    sources: Tensor,
    decoder_input_ids: Tensor,
    target_lengths: Tensor,
    chosen: Tensor,
) -> Tensor:
    """The logits at chosen target tokens of any encoder-decoder, by its own `forward` over padded rows: (L, V)."""

    def pad(packed: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Padded rows (B, W), and whether each position has a token."""
        padded = pad_sequence(list(packed.split(lengths.tolist())), batch_first=True, padding_value=model.config.pad_token_id)
        return padded, torch.arange(padded.shape[1], device=lengths.device) < lengths[:, None]

    inputs, input_mask = pad(input_ids, input_lengths)
    decoder_inputs, decoder_mask = pad(decoder_input_ids, target_lengths)
    logits = model(
        input_ids=inputs[sources], attention_mask=input_mask[sources].long(), decoder_input_ids=decoder_inputs
    ).logits  # (P, T, V)
    return logits[decoder_mask][chosen]
