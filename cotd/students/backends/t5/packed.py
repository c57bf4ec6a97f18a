"""T5's forward pass over packed sequences: one after another, so that nothing is computed for padding.

Reviews and rationales differ much in length: in a batch of 32 about half of what Hugging Face's T5 computes is padding.
Here all that is done token by token (projections, feed-forward layers, norms, the output layer) sees the tokens there are,
(N, d), and attention alone lays them out in rows, those of like length together. Weights, dropout and results are those of
the model's own `forward`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cotd.students.backends.t5.dropout import dropout
from cotd.students.backends.t5.rms_norm import rms_norm

# Scores of a head that a group has, if it can, and that it has at most.
FEWEST_SCORES, MOST_SCORES = 2**14, 2**18
# The score of what is not to be looked at, in any number format.
MASK_VALUE = torch.finfo(torch.bfloat16).min


class Group(NamedTuple):
    """Sequences of like length that attention computes together, as rows of one width."""

    rows: int
    width: int
    tokens: int
    places: Tensor | None  # (tokens,) where the tokens stand among rows × width; None where all are there
    unread: Tensor | None  # (B, 1, 1, W), added to scores: UNREAD where a row has no token, else 0; None where all are there


class Layout(Protocol):
    """How tokens, one after another, stand in rows: what attention asks of a `Packing` or of what stands for one."""

    groups: list[Group]
    width: int  # of the widest group

    def pad(self, packed: Tensor) -> list[Tensor]: ...


class Readable(Protocol):
    """What cross-attention asks of a `Memory` or of what stands for one."""

    states: Tensor
    unread: list[Tensor | None]

    def rows(self, packed: Tensor) -> list[Tensor]: ...


class Packing:
    """Where the tokens of packed sequences stand when they are padded rows, in groups of neighbours of like length.

    Args:
        lengths: (B,) tokens of each sequence, at least 1; the less neighbours differ, the less is padding.
    """

    def __init__(self, lengths: Tensor):
        self.lengths = lengths
        # A GPU would rather be asked few things than small ones.
        self.group_rows = group_sizes(lengths.tolist()) if lengths.device.type == "cpu" else [len(lengths)]
        self.groups = [as_rows(part) for part in lengths.split(self.group_rows)]
        self.group_tokens = [group.tokens for group in self.groups]
        self.width = max(group.width for group in self.groups)

    def pad(self, packed: Tensor) -> list[Tensor]:
        """(N, d) → each group's (B, W, d), zeros where there is no token."""
        return [pad_group(part, group) for part, group in zip(packed.split(self.group_tokens), self.groups, strict=True)]


def group_sizes(lengths: list[int]) -> list[int]:
    """How many neighbours each group has.

    Up to a quarter of a row is wasted before another group begins, and in a group of few scores whatever it takes; none has
    many more than fit a processor's cache. Chosen by reasoning, not by a search.
    """
    sizes: list[int] = []
    least = width = 0
    for length in lengths:
        least, width = min(least, length), max(width, length)
        scores = (sizes[-1] + 1) * width**2 if sizes else 0
        if sizes and (scores <= FEWEST_SCORES or (scores <= MOST_SCORES and 4 * least >= 3 * width)):
            sizes[-1] += 1
        else:
            sizes.append(1)
            least = width = length
    return sizes


def as_rows(lengths: Tensor) -> Group:
    """The one group that sequences of such lengths make."""
    rows, width, tokens = len(lengths), int(lengths.max()), int(lengths.sum())
    if tokens == rows * width:
        return Group(rows, width, tokens, None, None)
    real = torch.arange(width, device=lengths.device) < lengths[:, None]  # (B, W)
    unread = torch.zeros_like(real, dtype=torch.float32).masked_fill_(~real, MASK_VALUE)
    return Group(rows, width, tokens, real.flatten().nonzero().squeeze(1), unread[:, None, None])


def pad_group(packed: Tensor, group: Group) -> Tensor:
    """(N, d) → (B, W, d)."""
    if group.places is not None:
        packed = packed.new_zeros(group.rows * group.width, packed.shape[-1]).index_copy_(0, group.places, packed)
    return packed.view(group.rows, group.width, -1)


def pack_group(padded: Tensor, group: Group) -> Tensor:
    """(B, W, d) → (N, d)."""
    packed = padded.reshape(group.rows * group.width, -1)
    return packed if group.places is None else packed.index_select(0, group.places)


def token_states(
    model: Any,
    input_ids: Tensor,
    input_lengths: Tensor,
    sources: Tensor,
    decoder_input_ids: Tensor,
    target_lengths: Tensor,
    wanted: Tensor,
) -> Tensor:
    """What the output layer reads at target tokens.

    Args:
        model: a T5ForConditionalGeneration.
        input_ids: (N,) the inputs, one after another. input_lengths: (I,).
        sources: (P,) which input each target belongs to.
        decoder_input_ids: (M,) the targets, shifted right. target_lengths: (P,).
        wanted: (M,) whether a token's are.

    Returns:
        (L, d), for the L tokens that are wanted.
    """
    source, target = Packing(input_lengths), Packing(target_lengths)
    # One look-up for both sides: each would make a gradient of the whole vocabulary's size.
    embedded = model.shared(torch.cat([input_ids, decoder_input_ids]))
    read, written = embedded.split([len(input_ids), len(decoder_input_ids)])
    memory = Memory(run_stack(model.encoder, read, source), source, sources, target)
    hidden = run_stack(model.decoder, written, target, memory)[wanted]
    return hidden * model.model_dim**-0.5 if model.config.scale_decoder_outputs else hidden


class Memory:
    """An encoder's output as a decoder's groups of targets read it.

    Args:
        states: (N, d), packed by `packing`.
        sources: (P,) which of its sequences each target reads.
        targets: how the targets are packed.
    """

    def __init__(self, states: Tensor, packing: Packing, sources: Tensor, targets: Packing):
        self.states = to_autocast(states)
        self.whole = as_rows(packing.lengths)
        self.read = sources.split(targets.group_rows)
        groups = [as_rows(packing.lengths[chosen]) for chosen in self.read]
        self.widths, self.unread = [group.width for group in groups], [group.unread for group in groups]

    def rows(self, packed: Tensor) -> list[Tensor]:
        """(N, d) → for each group of targets, (B, S, d): what each of them reads."""
        padded = pad_group(packed, self.whole)
        return [padded[:, :width][chosen] for chosen, width in zip(self.read, self.widths, strict=True)]


def run_stack(stack: Any, hidden: Tensor, packing: Layout, memory: Readable | None = None) -> Tensor:
    """An encoder or, with `memory`, a decoder over packed embeddings (N, d): (N, d)."""
    rate, training = stack.dropout.p, stack.training
    bias = stack.block[0].layer[0].SelfAttention.compute_bias(packing.width, packing.width)  # (1, H, S, S), for all layers
    if memory is not None:  # padding lies on the right, where no token looks
        least = torch.finfo(bias.dtype).min
        bias = bias + torch.full(bias.shape[2:], least, dtype=bias.dtype, device=bias.device).triu_(1)
    biases = [bias[:, :, : group.width, : group.width] for group in packing.groups]
    hidden = dropout(hidden, rate, training)
    for block in stack.block:
        kept = not (training and block.gradient_checkpointing)
        run = run_block if kept else partial(checkpoint, run_block, use_reentrant=False)
        hidden = run(block, hidden, packing, biases, rate, memory)
    return dropout(norm(stack.final_layer_norm, hidden), rate, training)


def run_block(
    block: Any, hidden: Tensor, packing: Layout, biases: list[Tensor], rate: float, memory: Readable | None
) -> Tensor:
    """A layer of a stack, for `run_stack`: (N, d) → (N, d).

    Args:
        biases: (1, H, W, W) of each group, added to the scores of self-attention.
    """
    training = block.training
    layer = block.layer[0]
    normed, own = to_autocast(norm(layer.layer_norm, hidden)), layer.SelfAttention
    queries, keys, values = (packing.pad(project(normed)) for project in (own.q, own.k, own.v))
    seen = attend(own, queries, keys, values, packing, [group.unread for group in packing.groups], biases)
    hidden = hidden + dropout(seen, rate, training)
    if memory is not None:
        layer = block.layer[1]
        normed, cross = to_autocast(norm(layer.layer_norm, hidden)), layer.EncDecAttention
        keys, values = memory.rows(cross.k(memory.states)), memory.rows(cross.v(memory.states))
        seen = attend(cross, packing.pad(cross.q(normed)), keys, values, packing, memory.unread)
        hidden = hidden + dropout(seen, rate, training)
    layer = block.layer[-1]
    return hidden + dropout(feed_forward(layer.DenseReluDense, norm(layer.layer_norm, hidden)), rate, training)


def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
    """T5's feed-forward layer, plain (v1.0) or gated (v1.1): (N, d) → (N, d)."""
    gated = hasattr(layer, "wi_0")
    hidden = to_autocast(hidden)
    inner = layer.act(layer.wi_0(hidden)) * layer.wi_1(hidden) if gated else layer.act(layer.wi(hidden))
    return layer.wo(dropout(inner, layer.dropout.p, layer.training))


def norm(layer: Any, hidden: Tensor) -> Tensor:
    return rms_norm(hidden, layer.weight, layer.variance_epsilon)


def to_autocast(hidden: Tensor) -> Tensor:
    """In the number format of mixed precision, if it is on: once for all the layers that read it, which each would do it."""
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden


def attend(
    attention: Any,
    queries: list[Tensor],
    keys: list[Tensor],
    values: list[Tensor],
    packing: Layout,
    unread: list[Tensor | None],
    biases: list[Tensor] | None = None,
) -> Tensor:
    """Multi-head attention, group by group: (N, d), packed.

    Args:
        queries: (B, W, d) of each group. keys, values: (B, S, d).
        unread: (B, 1, 1, S) of each group, as in `Group`, here of what is looked at.
        biases: of each group, added to its scores; broadcast to (B, H, W, S).
    """

    def heads(part: Tensor) -> Tensor:
        return part.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)  # (B, H, S, d_kv)

    found = []
    for i, group in enumerate(packing.groups):
        scores = heads(queries[i]) @ heads(keys[i]).transpose(2, 3)  # (B, H, W, S); T5 does not scale them
        for more in (biases[i] if biases is not None else None, unread[i]):
            if more is not None:
                scores = scores.add_(more) if scores.dtype == more.dtype else scores + more
        weights = dropout(torch.softmax(scores, dim=-1), attention.dropout, attention.training)
        found.append(pack_group((weights @ heads(values[i])).transpose(1, 2).flatten(2), group))
    return attention.o(torch.cat(found))
