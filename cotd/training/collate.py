"""What one training step computes: the pairs of a batch of reviews, packed, and the multi-task loss over them.

L = L_label + λ L_rationale, both the mean token cross-entropy of the target sequences (Hsieh et al. 2023, equation 3;
λ is `training.rationale_weight`). Rationale and label as one target have the one loss of that sequence.
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
from cotd.training.encoding import TARGET_KINDS

# The models that `cotd.students.backends.t5.packed` computes; others are computed with padding.
PACKED = ("t5", "mt5")
INPUTS = ("input_ids", "input_lengths", "sources", "decoder_input_ids", "target_lengths")


def collate(
    rows: Sequence[dict[str, Any]],
    decoder_start: int,
    at_once: int | None = None,
    rationale_prompt: Sequence[int] = (),
    worker: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """A batch of reviews, packed: sequences lie one after another, the longest first, without padding.

    Args:
        rows: of `EncodedPairs`.
        decoder_start: the token that each decoder input begins with.
        at_once: reviews in a part, whose gradients are computed together; all by default.
        rationale_prompt: what the decoder reads before it writes a rationale, of students with a shared encoder.
        worker: which of how many it is. Each takes every n-th review, so that their lengths are alike; its `parts` may be none.

    Returns:
        `totals` (tasks, 3): each task's sum of pair weights, pairs and target tokens. `parts`, a list of
        {review_ids, input_ids (N,) and input_lengths (I,) of the distinct inputs, sources (P,) the input of each pair,
        decoder_input_ids (M,), labels (M,) with -100 where nothing is learned, target_lengths (P,),
        tasks (M,), which are places in TASKS_TRAINED}.
    """
    totals = [[0.0, 0.0, 0.0] for _ in TARGET_KINDS]
    for number, task in enumerate(TARGET_KINDS):
        for _, target, weight in (pair for row in rows for pair in row[task]):
            totals[number] = [total + more for total, more in zip(totals[number], (weight, 1.0, len(target)), strict=True)]
    own = rows[worker[0] :: worker[1]]
    at_once = at_once or len(rows)
    parts = []
    for start in range(0, len(own), at_once):
        part = own[start : start + at_once]
        pairs = [(number, *pair) for number, task in enumerate(TARGET_KINDS) for row in part for pair in row[task]]
        places: dict[tuple[int, ...], int] = {}  # N rationales of a review share their input: it is read once
        for _, source, _, _ in sorted(pairs, key=lambda pair: -len(pair[1])):
            places.setdefault(tuple(source), len(places))
        pairs.sort(key=lambda pair: -len(pair[2]))
        sources = [places[tuple(source)] for _, source, _, _ in pairs]
        prompts = [list(rationale_prompt) if TARGET_KINDS[number] == "rationale" else [] for number, _, _, _ in pairs]
        written = [[decoder_start, *prompt, *target[:-1]] for prompt, (_, _, target, _) in zip(prompts, pairs, strict=True)]
        labels = [[-100] * len(prompt) + target for prompt, (_, _, target, _) in zip(prompts, pairs, strict=True)]
        lengths = torch.tensor([len(ids) for ids in written])
        parts.append(
            {
                "review_ids": [row["review_id"] for row in part],
                "input_ids": torch.tensor(list(chain.from_iterable(places))),
                "input_lengths": torch.tensor([len(source) for source in places]),
                "sources": torch.tensor(sources),
                "decoder_input_ids": torch.tensor(list(chain.from_iterable(written))),
                "labels": torch.tensor(list(chain.from_iterable(labels))),
                "target_lengths": lengths,
                "tasks": torch.tensor([number for number, _, _, _ in pairs]).repeat_interleave(lengths),
            }
        )
    return {"totals": torch.tensor(totals), "parts": parts}


def multi_task_loss(
    model: Any, part: dict[str, Any], totals: Tensor, label_smoothing: float = 0.0, rationales: float = 1.0
) -> Tensor:
    """What a part adds to its batch's loss: each task's mean token cross-entropy over the whole batch times its weight.

    Args:
        totals: those of the batch, of all parts and workers.
        rationales: what the weight of rationales is multiplied by: a schedule's share of λ at this step.
    """
    learned = part["labels"] != -100
    labels, tasks = part["labels"][learned], part["tasks"][learned]
    sums, pairs, tokens = totals.unbind(1)
    shares = sums.new_tensor([rationales if task == "rationale" else 1.0 for task in TARGET_KINDS])
    weights = (shares * sums / (pairs * tokens).clamp_min(1))[tasks]  # (L,)
    inputs = {name: part[name] for name in INPUTS}
    if model.config.model_type in PACKED:
        states = token_states(model, **inputs, wanted=learned)
        return token_loss(states, model.lm_head.weight, labels, weights, label_smoothing)
    logits = padded_logits(model, **inputs, wanted=learned).float()
    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    return (losses * weights).sum()


def padded_logits(
    model: Any,
    input_ids: Tensor,
    input_lengths: Tensor,
    sources: Tensor,
    decoder_input_ids: Tensor,
    target_lengths: Tensor,
    wanted: Tensor,
) -> Tensor:
    """The logits at wanted target tokens of any encoder-decoder, by its own `forward` over padded rows: (L, V)."""

    def rows(packed: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        padded = pad_sequence(list(packed.split(lengths.tolist())), batch_first=True, padding_value=model.config.pad_token_id)
        return padded, torch.arange(padded.shape[1], device=lengths.device) < lengths[:, None]

    inputs, read = rows(input_ids, input_lengths)
    decoder_inputs, written = rows(decoder_input_ids, target_lengths)
    logits = model(
        input_ids=inputs[sources], attention_mask=read[sources].long(), decoder_input_ids=decoder_inputs
    ).logits  # (P, T, V)
    return logits[written][wanted]
