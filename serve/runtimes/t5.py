"""T5 reduced to what a label needs: the encoder once, one decoder step, and of the vocabulary only the label words.

With a small model, transformers spends much of its time on what surrounds the arithmetic: masks, caches, output objects.
This is the same arithmetic (Raffel et al. 2020, section 2.1) over the same weights: for one sentence 8 ms instead of 12
(the embedded student, one thread of a busy machine). `serve.runtimes.base.check_parity` compares the two at every load.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from cotd.students.student import Student

# Of a batch's texts, which come in any length, so many of like length are computed together on a processor: what is computed
# for padding costs more than a larger product saves.
ON_CPU = 8


def texts_together(student: Student, texts: int) -> int:
    """How many of a batch's texts to compute together; a GPU is best given all."""
    return ON_CPU if student.model.device.type == "cpu" else max(1, texts)


class T5LabelScorer:
    """Computes what `Student.label_logits` does, for a student whose model is a T5 (v1.0 or v1.1).

    Args:
        dtype: what to compute in, with a copy of the weights; by default as the student does, with its own.
    """

    def __init__(self, student: Student, dtype: torch.dtype | None = None):
        model, config = student.model, student.model.config
        if dtype is not None:
            model = copy.deepcopy(model).to(dtype)
        self.student = student
        self.device = model.device
        self.heads, self.head_size = config.num_heads, config.d_kv
        self.epsilon = config.layer_norm_epsilon
        self.activation = model.encoder.block[0].layer[-1].DenseReluDense.act
        self.embedding = model.shared.weight  # (vocabulary, d)
        self.encoder = [(block.layer[0], block.layer[1]) for block in model.encoder.block]
        self.decoder = [tuple(block.layer) for block in model.decoder.block]
        self.encoder_norm, self.decoder_norm = model.encoder.final_layer_norm.weight, model.decoder.final_layer_norm.weight
        with torch.no_grad():  # not inference mode: such tensors could not be traced by the ONNX export
            longest = student.max_input_tokens
            # Position bias depends on distance alone, so that shorter texts use a corner of it: (1, heads, longest, longest)
            self.bias = self.encoder[0][0].SelfAttention.compute_bias(longest, longest, device=self.device)
            self.start = self.embedding[config.decoder_start_token_id]  # (d,)
            scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
            self.words = model.lm_head.weight[student.first_tokens] * scale  # (labels, d)

    @torch.inference_mode()
    def label_logits(self, texts: Sequence[str]) -> tuple[Any, list[bool]]:
        """Scores of the label words, on the CPU: (len(texts), labels), and whether each text was truncated."""
        scores = torch.empty(len(texts), len(self.words))
        truncated = [False] * len(texts)
        together = texts_together(self.student, len(texts))
        for indices, batch, cut in self.student.batches(texts, self.student.task.label_prefix, together):
            scores[indices] = self.score(batch["input_ids"], batch["attention_mask"]).float().cpu()
            for i, was_cut in zip(indices, cut, strict=True):
                truncated[i] = was_cut
        return scores, truncated

    def score(self, ids: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids and their 0/1 mask → (B, labels)."""
        length = ids.shape[1]
        # What is added to attention scores: nothing for a token, minus infinity for padding. (B, 1, 1, T)
        padding = torch.zeros(attended.shape, dtype=self.bias.dtype, device=self.device)
        padding = padding.masked_fill(attended == 0, -torch.inf)[:, None, None]
        bias = self.bias[:, :, :length, :length] + padding  # (B, heads, T, T)
        read = F.embedding(ids, self.embedding)  # (B, T, d)
        for attention, feed_forward in self.encoder:
            normed = self.norm(read, attention.layer_norm.weight)
            read = read + self.attend(attention.SelfAttention, normed, normed, bias)
            read = self.feed_forward(feed_forward, read)
        read = self.norm(read, self.encoder_norm)
        written = self.start.expand(ids.shape[0], 1, -1)  # (B, 1, d)
        for self_attention, cross_attention, feed_forward in self.decoder:
            # A single position attends to itself alone: its values, whatever the scores.
            own = self_attention.SelfAttention
            written = written + own.o(own.v(self.norm(written, self_attention.layer_norm.weight)))
            normed = self.norm(written, cross_attention.layer_norm.weight)
            written = written + self.attend(cross_attention.EncDecAttention, normed, read, padding)
            written = self.feed_forward(feed_forward, written)
        return F.linear(self.norm(written, self.decoder_norm)[:, 0], self.words)

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.epsilon)

    def attend(self, layer: Any, queries: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """(B, Q, d), (B, T, d) → (B, Q, d). T5 does not scale its scores."""

        def split(x: torch.Tensor) -> torch.Tensor:
            return x.view(x.shape[0], x.shape[1], self.heads, self.head_size).transpose(1, 2)  # (B, heads, T, head size)

        q, k, v = split(layer.q(queries)), split(layer.k(keys)), split(layer.v(keys))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return layer.o(mixed.transpose(1, 2).reshape(queries.shape[0], queries.shape[1], -1))

    def feed_forward(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        dense, normed = layer.DenseReluDense, self.norm(x, layer.layer_norm.weight)
        if hasattr(dense, "wi"):  # v1.0
            return x + dense.wo(self.activation(dense.wi(normed)))
        return x + dense.wo(self.activation(dense.wi_0(normed)) * dense.wi_1(normed))  # v1.1, gated
