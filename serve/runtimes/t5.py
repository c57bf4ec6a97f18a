"""T5 reduced to what a label needs: the encoder once, one decoder step, and of the vocabulary only the label words.

With a small model, transformers spends much of its time on what surrounds the arithmetic: masks, caches, output objects.
This is the same arithmetic (Raffel et al. 2020, section 2.1) over the same weights: for one sentence 8 ms instead of 12
(the embedded student, one thread of a busy machine). `serve.runtimes.parity` compares the two at every load.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F

from cotd.students.student import Student
from serve.runtimes.base import BatchedRuntime


class T5LabelScorer(BatchedRuntime):
    """Computes what `Student.label_logits` does, for a student whose model is a T5 (v1.0 or v1.1).

    Args:
        dtype: what to compute in, with a copy of the weights; by default with the student's own weights.
    """

    def __init__(self, student: Student, dtype: torch.dtype | None = None):
        super().__init__(student)
        model, config = student.model, student.model.config
        if dtype is not None:
            model = copy.deepcopy(model).to(dtype)
        self.heads, self.head_size = config.num_heads, config.d_kv
        self.epsilon = config.layer_norm_epsilon
        self.activation = model.encoder.block[0].layer[-1].DenseReluDense.act
        self.embedding = model.shared.weight  # (vocabulary, d)
        self.encoder = [(block.layer[0], block.layer[1]) for block in model.encoder.block]
        self.decoder = [tuple(block.layer) for block in model.decoder.block]
        self.encoder_norm, self.decoder_norm = model.encoder.final_layer_norm.weight, model.decoder.final_layer_norm.weight
        with torch.inference_mode():
            longest = student.max_input_tokens
            # (1, heads, longest, longest). Position bias depends on distance alone: shorter texts use a corner of it.
            self.bias = self.encoder[0][0].SelfAttention.compute_bias(longest, longest, device=model.device)
            self.start = self.embedding[config.decoder_start_token_id]  # (d,)
            scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
            self.verbalizers = model.lm_head.weight[student.first_tokens] * scale  # (labels, d)

    def score(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids and their 0/1 mask → (B, labels)."""
        length = ids.shape[1]
        # What is added to attention scores: nothing for a token, minus infinity for padding. (B, 1, 1, T)
        padding = torch.zeros(mask.shape, dtype=self.bias.dtype, device=mask.device)
        padding = padding.masked_fill(mask == 0, -torch.inf)[:, None, None]
        bias = self.bias[:, :, :length, :length] + padding  # (B, heads, T, T)
        encoded = F.embedding(ids, self.embedding)  # (B, T, d)
        for attention, feed_forward in self.encoder:
            normed = self.norm(encoded, attention.layer_norm.weight)
            encoded = encoded + self.attend(attention.SelfAttention, normed, normed, bias)
            encoded = self.feed_forward(feed_forward, encoded)
        encoded = self.norm(encoded, self.encoder_norm)
        decoded = self.start.expand(ids.shape[0], 1, -1)  # (B, 1, d)
        for self_attention, cross_attention, feed_forward in self.decoder:
            # A single position attends to itself alone: its values, whatever the scores.
            attention = self_attention.SelfAttention
            decoded = decoded + attention.o(attention.v(self.norm(decoded, self_attention.layer_norm.weight)))
            normed = self.norm(decoded, cross_attention.layer_norm.weight)
            decoded = decoded + self.attend(cross_attention.EncDecAttention, normed, encoded, padding)
            decoded = self.feed_forward(feed_forward, decoded)
        return F.linear(self.norm(decoded, self.decoder_norm)[:, 0], self.verbalizers)

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root mean square normalisation."""
        return F.rms_norm(x, weight.shape, weight, self.epsilon)

    def attend(self, layer: Any, queries: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """(B, Q, d), (B, T, d) → (B, Q, d). T5 does not scale its scores."""

        def split(x: torch.Tensor) -> torch.Tensor:
            return x.view(x.shape[0], x.shape[1], self.heads, self.head_size).transpose(1, 2)  # (B, heads, T, head size)

        q, k, v = split(layer.q(queries)), split(layer.k(keys)), split(layer.v(keys))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return layer.o(mixed.transpose(1, 2).reshape(queries.shape[0], queries.shape[1], -1))

    def feed_forward(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """A feed-forward layer with its residual connection."""
        dense, normed = layer.DenseReluDense, self.norm(x, layer.layer_norm.weight)
        if hasattr(dense, "wi"):  # v1.0
            return x + dense.wo(self.activation(dense.wi(normed)))
        return x + dense.wo(self.activation(dense.wi_0(normed)) * dense.wi_1(normed))  # v1.1, gated
