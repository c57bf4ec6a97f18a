"""Every runtime computes what its student does, and `auto` names one that can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from cotd.errors import CotdError
from cotd.students.base_models import load_base
from cotd.students.student import Student
from serve.runtimes.onnx import OnnxScorer
from serve.runtimes.parity import PROBES, difference
from serve.runtimes.registry import AUTO, RUNTIMES, choose_runtime, make_runtime
from serve.runtimes.t5 import T5LabelScorer
from tests.serve.runtimes.conftest import need
from tests.tasks import SENTIMENT

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("name", [name for name, kind in RUNTIMES.items() if kind.tolerance < 0.01])
def test_each_runtime_computes_what_the_student_does(student: Student, name: str) -> None:
    need(RUNTIMES[name].packages)
    logits, truncated = make_runtime(name, student).label_logits(PROBES)
    expected, flags = student.label_logits(PROBES)
    assert truncated == flags
    assert any(flags)
    assert torch.allclose(logits, expected, atol=1e-4)
    assert len({round(x, 4) for x in logits[:, 0].tolist()}) > 4, "it depends on the text"


@pytest.mark.parametrize("name", [name for name, kind in RUNTIMES.items() if kind.tolerance >= 0.01])
def test_fewer_bits_change_only_labels_that_are_undecided(embedded_student: Path, rotten_tomatoes: Path, name: str) -> None:
    """What a user relies on, on more texts than the probes; with the embedded base model, as random weights round too coarsely."""
    need(RUNTIMES[name].packages)
    model, tokenizer = load_base(str(embedded_student))
    student = Student(model, tokenizer, SENTIMENT, {"max_input_tokens": 64})
    texts = pd.read_parquet(rotten_tomatoes / "reviews.parquet")["text"].tolist()[:100]
    actual, expected = student.predictions(*make_runtime(name, student).label_logits(texts)), student.predict(texts)
    problems = [difference(a, e, RUNTIMES[name].tolerance) for a, e in zip(actual, expected, strict=True)]
    assert [problem for problem in problems if problem] == []
    assert max(abs(a.score - e.score) for a, e in zip(actual, expected, strict=True)) > 1e-5, "nothing was rounded"


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
@pytest.mark.parametrize("variant", [{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, {"num_layers": 3}])
def test_the_fast_t5_knows_both_versions(student: Student, variant: dict[str, Any], name: str) -> None:
    """T5 1.0 ties its embeddings and has one feed-forward matrix; 1.1 does neither (Shazeer 2020)."""
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    vocabulary = len(student.tokenizer)
    config = T5Config(vocab_size=vocabulary, decoder_start_token_id=0, **{**shape, **variant})
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config)
    for parameter in model.parameters():  # far from the start, where some terms are too small to be seen
        torch.nn.init.normal_(parameter, std=0.5)
    other = Student(model, student.tokenizer, student.task, {"max_input_tokens": 32})
    scorer = make_runtime(name, other)
    assert isinstance(scorer, T5LabelScorer | OnnxScorer)
    assert torch.allclose(scorer.label_logits(PROBES)[0], other.label_logits(PROBES)[0], atol=1e-3, rtol=1e-3)


def test_the_default_is_what_is_fastest_and_can_compute_the_student(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    need(RUNTIMES["onnxruntime"].packages)
    assert isinstance(make_runtime(AUTO, student), OnnxScorer)
    reasoning = Student(student.model, student.tokenizer, student.task, {**student.card, "rationale_before_label": True})
    assert choose_runtime(AUTO, reasoning) == "torch"
    monkeypatch.setattr(student.model.config, "dense_act_fn", "silu")
    assert choose_runtime(AUTO, student) == "torch"
    monkeypatch.undo()
    monkeypatch.setattr("serve.runtimes.packages.importlib.util.find_spec", lambda name: None)
    assert choose_runtime(AUTO, student) == "torch"


@pytest.mark.parametrize("name", [name for name, kind in RUNTIMES.items() if not kind.label_only])
def test_a_student_that_reasons_first_is_served_as_it_predicts(student: Student, name: str) -> None:
    card = {**student.card, "method": "cot_joint", "rationale_before_label": True}
    reasoning = Student(student.model, student.tokenizer, student.task, card)
    logits, _ = make_runtime(name, reasoning).label_logits(PROBES)
    assert torch.allclose(logits, reasoning.label_logits(PROBES)[0], atol=1e-4)
    assert not torch.allclose(logits, student.label_logits(PROBES)[0], atol=1e-2)


def test_an_unknown_runtime(student: Student) -> None:
    with pytest.raises(CotdError, match=r"unknown runtime 'torsh'; known: auto, torch.*Did you mean 'torch'\?"):
        make_runtime("torsh", student)


def test_a_runtime_of_labels_alone_refuses_a_student_that_reasons_first(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.runtimes.registry.require_packages", lambda user, packages: None)
    reasoning = Student(student.model, student.tokenizer, student.task, {**student.card, "rationale_before_label": True})
    with pytest.raises(CotdError, match="writes a rationale before its label"):
        make_runtime("onnxruntime", reasoning)
