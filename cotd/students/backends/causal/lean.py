"""Llama's forward pass (Touvron et al. 2023), which SmolLM2, Qwen2 and Mistral share, over packed trees and for inference alone.

For one text, a third of the time of transformers' own is spent on what surrounds the products: masks, caches, output objects. The
layers are the model's own, whatever computes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cotd.students.backends.causal.attention import attend, trees_of

FAMILIES = ("llama", "mistral", "qwen2")


def lean_states(model: Any, part: dict[str, Tensor]) -> Tensor:
    """The last hidden states of what `pack_trees` gave, (N, d). Args: model: without its output layer, of one of FAMILIES."""
    trees = trees_of(part)
    x = model.embed_tokens(part["input_ids"])
    cos, sin = (angles[0, :, None] for angles in model.rotary_emb(x[None], part["positions"][None]))  # (N, 1, head size)
    half = sin.shape[-1] // 2
    sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)

    def heads(states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, cos.shape[-1]))

    def rotated(states: Tensor) -> Tensor:
        return (states * cos).addcmul_(states.roll(half, dims=-1), sin)

    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        y = normalised(x, layer.input_layernorm)
        q, k, v = rotated(heads(attention.q_proj(y))), rotated(heads(attention.k_proj(y))), heads(attention.v_proj(y))
        q, k, v = (states.transpose(0, 1)[None] for states in (q, k, v))
        mixed, _ = attend(attention, q, k, v, None, scaling=attention.scaling, trees=trees)
        x = x + attention.o_proj(mixed[0].flatten(1))
        y = normalised(x, layer.post_attention_layernorm)
        x = x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(y)) * mlp.up_proj(y))
    return normalised(x, model.norm)


def normalised(x: Tensor, layer: Any) -> Tensor:
    """Root mean square normalisation, in float32 but for the weights, as transformers does."""
    wide = x.float()
    size = wide.square().mean(dim=-1, keepdim=True).add_(layer.variance_epsilon).rsqrt_()
    return layer.weight * (wide * size).to(x.dtype)
