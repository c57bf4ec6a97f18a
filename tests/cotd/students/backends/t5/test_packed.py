"""T5 over packed sequences against transformers' own forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cotd.students.backends import packing
from cotd.students.backends.seq2seq import padded_logits
from cotd.students.backends.t5 import packed
from cotd.students.backends.t5.packed import run_block, token_states


@pytest.mark.parametrize(
    ("version", "checkpointing", "min_scores"),
    [("v1.0", False, 0), ("v1.1", False, 0), ("v1.1", True, 0), ("v1.0", False, 2**14)],
)
def test_packed_sequences_give_the_logits_and_gradients_of_the_models_own_forward(
    version: str, checkpointing: bool, min_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many groups of rows as there are lengths, and with one."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    kind = {"feed_forward_proj": "relu"} if version == "v1.0" else gated
    model = T5ForConditionalGeneration(T5Config(**shape, **kind, dropout_rate=0.0, decoder_start_token_id=0)).eval()
    computed: list[Any] = []
    monkeypatch.setattr(packed, "run_block", lambda *inputs: computed.append(inputs) or run_block(*inputs))
    monkeypatch.setattr(packing, "MIN_SCORES", min_scores)
    if checkpointing:
        model.gradient_checkpointing_enable()
    lengths, target_lengths = torch.tensor([40, 38, 5, 1]), torch.tensor([25, 25, 20, 2, 4, 1])
    inputs, targets = (torch.randint(2, 99, (int(n.sum()),)) for n in (lengths, target_lengths))
    part = {
        "input_ids": inputs, "input_lengths": lengths, "sources": torch.tensor([0, 3, 1, 2, 3, 3]),
        "decoder_input_ids": targets, "target_lengths": target_lengths,
        "target_kinds": torch.tensor([1, 1, 1, 0, 0, 0]).repeat_interleave(target_lengths),
    }  # fmt: skip
    results = []
    for is_packed in (True, False):
        model.train(is_packed)
        logits = model.lm_head(token_states(model, part, targets > 9)) if is_packed else padded_logits(model, part, targets > 9)
        model.zero_grad()
        logits.square().mean().backward()
        results.append([logits, *(p.grad.clone() for p in model.parameters())])
    for ours, padded in zip(*results, strict=True):
        torch.testing.assert_close(ours, padded, rtol=1e-4, atol=1e-5 * float(padded.abs().max()))
    assert len(computed) == (8 if checkpointing else 4)
