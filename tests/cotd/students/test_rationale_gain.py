"""How much likelier rationales make their labels, compared with the same computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cotd.errors import CotdError
from cotd.students.rationale_gain import RationaleGain, gain_problem
from tests.tasks import QUIZ, SENTIMENT, SUMS
from tests.tiny_models import write_tiny

TEXTS = ["A warm and funny film.", "A dull film."]
WHY = ["It is warm and funny.", "The reviewer finds it lifeless."]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("llama", tmp_path_factory.mktemp("gain") / "llama", None)


def log_p(llama: Path, prompt: str, words: list[str]) -> list[float]:
    """The log-probability of each of some words of one token after a prompt, among these."""
    tokenizer, model = AutoTokenizer.from_pretrained(llama), AutoModelForCausalLM.from_pretrained(llama)
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])).logits[0, -1]
    return logits[ids].log_softmax(dim=-1).tolist()


def test_the_gain_is_what_the_rationale_adds_to_the_labels_log_probability(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cotd.students.backends.causal.backend.multiplies_bfloat16", lambda _: False)
    gain = RationaleGain(str(llama), SENTIMENT)
    labels = ["positive", "negative"]
    gains = gain(TEXTS, [None, None], WHY, labels)
    for text, why, label, value in zip(TEXTS, WHY, labels, gains, strict=True):
        words = [" negative", " positive"]
        before, after = (
            log_p(llama, f"Review: {text}{told}\nSentiment:", words)[words.index(f" {label}")]
            for told in ("", f"\nRationale: {why}")
        )
        assert value == pytest.approx(after - before, abs=1e-4)
    opposite = gain(TEXTS[::-1], [None, None], WHY[::-1], labels)
    assert np.sign(opposite).tolist() == np.sign(-gains[::-1]).tolist(), "of two labels, what helps one hurts the other"


def test_options_of_their_own_are_scored_whole(llama: Path) -> None:
    gain = RationaleGain(str(llama), QUIZ)
    options = [["sky", "the sea and the land"], ["land", "sea", "sky"]]
    first = gain(["Which is it?"] * 2, options, ["It is the sky."] * 2, ["sky", "sky"])
    assert np.isfinite(first).all()
    again = gain(["Which is it?"] * 2, options[::-1], ["It is the sky."] * 2, ["sky", "sky"])
    assert again == pytest.approx(first[::-1])


def test_what_cannot_be_scored_is_refused(llama: Path, tiny_t5: Path) -> None:
    assert gain_problem(str(llama), SENTIMENT) is None
    assert "are free" in (gain_problem(str(llama), SUMS) or "")
    assert "needs a causal model" in (gain_problem(str(tiny_t5), SENTIMENT) or "")
    with pytest.raises(CotdError, match="needs a causal model"):
        RationaleGain(str(tiny_t5), SENTIMENT)
