"""T5's forward pass over packed sequences: one after another, so that nothing is computed for padding.

Reviews and rationales differ much in length: in a batch of 32 about half of what Hugging Face's T5 computes is padding.
Here all that is done token by token (projections, feed-forward layers, norms, the output layer) sees the tokens there are,
(N, d), and attention alone lays them out in rows. Weights, dropout and results are those of the model's own `forward`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cotd.dropout import drop


class Packing:
    """Where the tokens of packed sequences stand when each sequence is a padded row.

    Args:
        lengths: (B,) tokens of each sequence, at least 1.
    """

    def __init__(self, lengths: Tensor):
        self.rows, self.width = len(lengths), int(lengths.max())
        self.real = torch.arange(self.width, device=lengths.device) < lengths[:, None]  # (B, S)
        self.places = self.real.flatten().nonzero().squeeze(1)  # (N,)

    def pad(self, packed: Tensor) -> Tensor:
        """(N, d) → (B, S, d), zeros where there is no token."""
        padded = packed.new_zeros(self.rows * self.width, packed.shape[-1])
        return padded.index_copy(0, self.places, packed).view(self.rows, self.width, -1)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, S, d) → (N, d)."""
        return padded.reshape(self.rows * self.width, -1).index_select(0, self.places)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """(B, 1, 1, S), to be added to attention scores: 0 for a token, the least number for none."""
        hidden = torch.zeros(self.rows, 1, 1, self.width, dtype=dtype, device=self.real.device)
        return hidden.masked_fill_(~self.real[:, None, None], torch.finfo(dtype).min)


def token_logits(
    model: Any,
    input_ids: Tensor,
    input_lengths: Tensor,
    sources: Tensor,
    decoder_input_ids: Tensor,
    target_lengths: Tensor,
    wanted: Tensor,
) -> Tensor:
    """The output layer's logits at target tokens.

    Args:
        model: a T5ForConditionalGeneration.
        input_ids: (N,) the inputs, one after another. input_lengths: (I,).
        sources: (P,) which input each target belongs to.
        decoder_input_ids: (M,) the targets, shifted right. target_lengths: (P,).
        wanted: (M,) whether a token's logits are.

    Returns:
        (L, V), for the L tokens that are wanted.
    """
    source, target = Packing(input_lengths), Packing(target_lengths)
    # One look-up for both sides: each would make a gradient of the whole vocabulary's size.
    embedded = model.shared(torch.cat([input_ids, decoder_input_ids]))
    read, written = embedded.split([len(input_ids), len(decoder_input_ids)])
    memory = run_stack(model.encoder, read, source)
    hidden = run_stack(model.decoder, written, target, memory, source, sources)[wanted]
    if model.config.scale_decoder_outputs:
        hidden = hidden * model.model_dim**-0.5
    return model.lm_head(hidden)


def run_stack(
    stack: Any,
    hidden: Tensor,
    packing: Packing,
    memory: Tensor | None = None,
    memory_packing: Packing | None = None,
    sources: Tensor | None = None,
) -> Tensor:
    """An encoder or decoder over packed embeddings (N, d): (N, d).

    Args:
        memory: for a decoder, the encoder's output, packed by `memory_packing`.
        sources: which row of it each of the decoder's rows reads.
    """
    rate, training = stack.dropout.p, stack.training
    bias = stack.block[0].layer[0].SelfAttention.compute_bias(packing.width, packing.width)  # (1, H, S, S), for all layers
    cross = None
    if memory_packing is None:
        bias = bias + packing.mask(bias.dtype)
    else:  # padding lies on the right, where no token looks
        least = torch.finfo(bias.dtype).min
        bias = bias + torch.full(bias.shape[2:], least, dtype=bias.dtype, device=bias.device).triu_(1)
        cross = memory_packing.mask(bias.dtype)[sources]
    hidden = drop(hidden, rate, training)
    for block in stack.block:
        kept = not (training and block.gradient_checkpointing)
        run = run_block if kept else partial(checkpoint, run_block, use_reentrant=False)
        hidden = run(block, hidden, packing, bias, rate, memory, memory_packing, cross, sources)
    return drop(stack.final_layer_norm(hidden), rate, training)


def run_block(
    block: Any,
    hidden: Tensor,
    packing: Packing,
    bias: Tensor,
    rate: float,
    memory: Tensor | None,
    memory_packing: Packing | None,
    cross: Tensor | None,
    sources: Tensor | None,
) -> Tensor:
    """A layer of a stack, for `run_stack`: (N, d) → (N, d).

    Args:
        bias, cross: added to the scores of self-attention and of attention to `memory`.
    """
    training = block.training
    layer = block.layer[0]
    normed = layer.layer_norm(hidden)
    hidden = hidden + drop(attend(layer.SelfAttention, normed, packing, normed, packing, bias), rate, training)
    if cross is not None:
        layer = block.layer[1]
        normed = layer.layer_norm(hidden)
        seen = attend(layer.EncDecAttention, normed, packing, memory, memory_packing, cross, sources)
        hidden = hidden + drop(seen, rate, training)
    layer = block.layer[-1]
    return hidden + drop(feed_forward(layer.DenseReluDense, layer.layer_norm(hidden)), rate, training)


def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
    """T5's feed-forward layer, plain (v1.0) or gated (v1.1): (N, d) → (N, d)."""
    gated = hasattr(layer, "wi_0")
    inner = layer.act(layer.wi_0(hidden)) * layer.wi_1(hidden) if gated else layer.act(layer.wi(hidden))
    return layer.wo(drop(inner, layer.dropout.p, layer.training))


def attend(
    attention: Any, asking: Tensor, asking_in: Packing, asked: Any, asked_in: Any, bias: Tensor, sources: Tensor | None = None
) -> Tensor:
    """Multi-head attention of packed tokens `asking` (N, d) over packed tokens `asked` (M, d): (N, d).

    Args:
        bias: added to the scores; broadcasts to (B, H, T, S).
        sources: (B,) which row of `asked` each row of `asking` looks at; by default its own.
    """

    def heads(packed: Tensor, packing: Packing) -> Tensor:
        return packing.pad(packed).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)  # (B, H, S, d_kv)

    queries = heads(attention.q(asking), asking_in)
    keys, values = heads(attention.k(asked), asked_in), heads(attention.v(asked), asked_in)
    if sources is not None:
        keys, values = keys[sources], values[sources]
    scores = queries @ keys.transpose(2, 3) + bias  # (B, H, T, S); T5 does not scale them
    weights = drop(torch.softmax(scores, dim=-1), attention.dropout, attention.training)
    return attention.o(asking_in.pack((weights @ values).transpose(1, 2).flatten(2)))
