"""T5's forward pass over packed sequences: one after another, so that nothing is computed for padding.

Examples and rationales differ much in length: in a batch of 32 about half of what Hugging Face's T5 computes is padding.
Here all that is done token by token (projections, feed-forward layers, norms, the output layer) gets the real tokens alone,
(N, d), and only attention lays them out in rows, together with those of like length. Weights, dropout and results are those of
the model's own `forward`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cotd.students.backends.packing import Packing, as_rows, pack_group, pad_group
from cotd.students.backends.t5.dropout import dropout
from cotd.students.backends.t5.rms_norm import rms_norm


def token_states(model: Any, part: dict[str, Any], chosen: Tensor) -> Tensor:
    """The output layer's inputs at chosen target tokens.

    Args:
        model: a T5ForConditionalGeneration.
        part: what `Seq2Seq.pack` gives.
        chosen: (M,) booleans.

    Returns:
        (L, d), for the L chosen tokens.
    """
    input_ids, decoder_input_ids = part["input_ids"], part["decoder_input_ids"]
    source, target = Packing(part["input_lengths"]), Packing(part["target_lengths"])
    # A single look-up: each would make a gradient of the whole vocabulary's size.
    embedded = model.shared(torch.cat([input_ids, decoder_input_ids]))
    inputs, targets = embedded.split([len(input_ids), len(decoder_input_ids)])
    memory = Memory(run_stack(model.encoder, inputs, source), source, part["sources"], target)
    hidden = run_stack(model.decoder, targets, target, memory)[chosen]
    scaled = getattr(model.config, "scale_decoder_outputs", False)  # which mT5 does not know
    return hidden * model.model_dim**-0.5 if scaled else hidden


class Memory:
    """An encoder's output as a decoder's groups of targets read it.

    Args:
        states: (N, d), packed by `packing`.
        sources: (P,) which of its sequences each target attends to.
        targets: how the targets are packed.
    """

    def __init__(self, states: Tensor, packing: Packing, sources: Tensor, targets: Packing):
        self.states = to_autocast(states)
        self.whole = as_rows(packing.lengths)
        self.sources = sources.split(targets.group_rows)
        groups = [as_rows(packing.lengths[part]) for part in self.sources]
        self.widths, self.masks = [group.width for group in groups], [group.mask for group in groups]

    def rows(self, packed: Tensor) -> list[Tensor]:
        """(N, d) → for each group of targets, (B, S, d): what each of them attends to."""
        padded = pad_group(packed, self.whole)
        return [padded[:, :width][part] for part, width in zip(self.sources, self.widths, strict=True)]


def run_stack(stack: Any, hidden: Tensor, packing: Packing, memory: Memory | None = None) -> Tensor:
    """An encoder or, with `memory`, a decoder over packed embeddings (N, d): (N, d)."""
    rate, training = stack.dropout.p, stack.training
    bias = stack.block[0].layer[0].SelfAttention.compute_bias(packing.width, packing.width)  # (1, H, S, S), for all layers
    if memory is not None:  # causal; padding, which is on the right, needs no mask of its own
        least = torch.finfo(bias.dtype).min
        bias = bias + torch.full(bias.shape[2:], least, dtype=bias.dtype, device=bias.device).triu_(1)
    biases = [bias[:, :, : group.width, : group.width] for group in packing.groups]
    hidden = dropout(hidden, rate, training)
    for block in stack.block:
        recompute = training and block.gradient_checkpointing
        run = partial(checkpoint, run_block, use_reentrant=False) if recompute else run_block
        hidden = run(block, hidden, packing, biases, rate, memory)
    return dropout(norm(stack.final_layer_norm, hidden), rate, training)


def run_block(block: Any, hidden: Tensor, packing: Packing, biases: list[Tensor], rate: float, memory: Memory | None) -> Tensor:
    """A layer of a stack: (N, d) → (N, d).

    Args:
        biases: (1, H, W, W) of each group, added to the scores of self-attention.
    """
    training = block.training
    layer = block.layer[0]
    normed, attention = to_autocast(norm(layer.layer_norm, hidden)), layer.SelfAttention
    queries, keys, values = (packing.pad(project(normed)) for project in (attention.q, attention.k, attention.v))
    attended = attend(attention, queries, keys, values, packing, [group.mask for group in packing.groups], biases)
    hidden = hidden + dropout(attended, rate, training)
    if memory is not None:
        layer = block.layer[1]
        normed, cross = to_autocast(norm(layer.layer_norm, hidden)), layer.EncDecAttention
        keys, values = memory.rows(cross.k(memory.states)), memory.rows(cross.v(memory.states))
        attended = attend(cross, packing.pad(cross.q(normed)), keys, values, packing, memory.masks)
        hidden = hidden + dropout(attended, rate, training)
    layer = block.layer[-1]
    return hidden + dropout(feed_forward(layer.DenseReluDense, norm(layer.layer_norm, hidden)), rate, training)


def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
    """T5's feed-forward layer, plain (v1.0) or gated (v1.1): (N, d) → (N, d)."""
    gated = hasattr(layer, "wi_0")
    hidden = to_autocast(hidden)
    inner = layer.act(layer.wi_0(hidden)) * layer.wi_1(hidden) if gated else layer.act(layer.wi(hidden))
    return layer.wo(dropout(inner, layer.dropout.p, layer.training))


def norm(layer: Any, hidden: Tensor) -> Tensor:
    """A layer norm: (N, d) → (N, d)."""
    return rms_norm(hidden, layer.weight, layer.variance_epsilon)


def to_autocast(hidden: Tensor) -> Tensor:
    """In mixed precision's number format, if it is on: once, where each layer that reads it would convert it again."""
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden


def attend(
    attention: Any,
    queries: list[Tensor],
    keys: list[Tensor],
    values: list[Tensor],
    packing: Packing,
    masks: list[Tensor | None],
    biases: list[Tensor] | None = None,
) -> Tensor:
    """Multi-head attention, group by group: (N, d), packed.

    Args:
        queries: (B, W, d) of each group. keys, values: (B, S, d).
        masks: (B, 1, 1, S) of each group, as in `Group`, for the keys.
        biases: of each group, added to its scores; broadcast to (B, H, W, S).
    """

    def heads(part: Tensor) -> Tensor:
        return part.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)  # (B, H, S, d_kv)

    outputs = []
    for i, group in enumerate(packing.groups):
        scores = heads(queries[i]) @ heads(keys[i]).transpose(2, 3)  # (B, H, W, S); T5 does not scale them
        for term in (biases[i] if biases is not None else None, masks[i]):
            if term is not None:
                scores = scores.add_(term) if scores.dtype == term.dtype else scores + term
        weights = dropout(torch.softmax(scores, dim=-1), attention.dropout, attention.training)
        outputs.append(pack_group((weights @ heads(values[i])).transpose(1, 2).flatten(2), group))
    return attention.o(torch.cat(outputs))
