"""Options are scored as by transformers' own forward pass, whatever computes them."""

from __future__ import annotations

import pytest
import torch

from cotd.students.backends.causal.backend import Causal
from tests.tasks import SENTIMENT
from tests.tiny_models import MAKERS

SOURCES = [[5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 20], [30, 31, 32, 33]]
CANDIDATES = [[[40, 41, 42], [43], [40, 44]], [[50, 51]], [[60], [61]]]


@pytest.mark.parametrize(("name", "lean"), [("llama", True), ("qwen2", True), ("gemma2", False), ("gpt2", False)])
def test_scores_are_those_of_transformers(name: str, lean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Causal, "reduced", False)
    torch.manual_seed(0)
    model, tokenizer = MAKERS[name][1](None)
    for parameter in model.parameters():  # far from the start, where some terms are too small to be seen
        torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    student = Causal(model, tokenizer, SENTIMENT, {})
    with torch.inference_mode():
        expected = []
        for source, options in zip(SOURCES, CANDIDATES, strict=True):
            for option in options:
                logs = model(torch.tensor([[*source, *option]])).logits[0, len(source) - 1 : -1].log_softmax(-1)
                expected.append(logs.gather(1, torch.tensor(option)[:, None]).sum())
        together = student.score(SOURCES, CANDIDATES)
        alone = torch.cat([student.score([source], [options])[0] for source, options in zip(SOURCES, CANDIDATES, strict=True)])
    assert torch.allclose(together[together > -torch.inf], torch.stack(expected), atol=1e-3)
    assert torch.allclose(alone, torch.stack(expected), atol=1e-3)
    assert student.packs
    assert student.lean == lean
