"""Base models are checked against what a study does with them before anything is paid or trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cotd.errors import CotdError
from cotd.study.config import load_config
from cotd.study.students import student_kinds
from tests.conftest import KINDS
from tests.tiny_models import write_tiny

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def bases(embedded_student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, tokenizer = tmp_path_factory.mktemp("bases"), AutoTokenizer.from_pretrained(embedded_student, local_files_only=True)
    return {name: str(write_tiny(name, folder / name, tokenizer)) for name in ("llama", "bert", "bart", "t5_v1_1")}


def study(write: Write, base: str, method: str = "finetune", training: dict[str, Any] | None = None, **blocks: Any) -> Path:
    grid = {"method": [method], "fraction": [1.0], "size": ["mine"], "seed": [0]}
    return write(sizes={"mine": base}, grid=grid, training={"max_target_tokens": 16} | (training or {}), **blocks)


def test_the_kind_follows_from_the_models_own_configuration(write_study: Write, bases: dict[str, str]) -> None:
    kinds = {name: student_kinds(load_config(study(write_study, base)))["mine"] for name, base in bases.items()}
    assert kinds == {"llama": "causal", "bert": "encoder", "bart": "seq2seq", "t5_v1_1": "t5"}


@pytest.mark.parametrize(
    ("name", "method", "training", "problem"),
    [
        ("bert", "cot_labelled", {}, r"'cot_labelled' teaches to write rationales, and an encoder labels and writes nothing"),
        ("llama", "finetune", {"max_input_tokens": 250}, r"it reads 256 tokens at most, and .* together are 266"),
        ("bart", "finetune", {"max_input_tokens": 300}, r"it reads 256 tokens at most, and training.max_input_tokens are 300"),
        ("llama", "finetune", {"chat": True}, r"training.chat is true, and the model has no chat template"),
        ("llama", "finetune", {"finetune": {"last_layers": 3}}, r"last_layers is 3, and the model has 2 layers"),
        (
            "llama",
            "finetune",
            {"finetune": {"lora": {"targets": ["q_proj", "query"]}}},
            r"the model has no layer query. Its layers",
        ),
    ],
)
def test_what_a_model_cannot_do_is_one_message(
    write_study: Write, bases: dict[str, str], name: str, method: str, training: dict[str, Any], problem: str
) -> None:
    config = load_config(study(write_study, bases[name], method, training))
    with pytest.raises(CotdError, match=problem) as raised:
        student_kinds(config)
    assert len(raised.value.problems) == 1


def test_an_encoder_is_refused_for_answers_that_are_not_labels(write_kind: Write, bases: dict[str, str]) -> None:
    grid = {"method": ["finetune"], "fraction": [1.0], "size": ["mine"], "seed": [0]}
    for kind in KINDS.keys() - {"labels"}:
        with pytest.raises(CotdError, match="an encoder tells a fixed set of labels apart"):
            student_kinds(load_config(write_kind(kind, sizes={"mine": bases["bert"]}, grid=grid)))


def test_a_tokenizer_without_an_end_is_refused(write_study: Write, bases: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "endless"
    tokenizer = AutoTokenizer.from_pretrained(bases["llama"], local_files_only=True)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text((Path(bases["llama"]) / "config.json").read_text())
    with pytest.raises(CotdError, match="no end-of-sequence token"):
        student_kinds(load_config(study(write_study, str(folder))))


def test_settings_that_a_study_leaves_out_follow_the_kind(write_study: Write, bases: dict[str, str]) -> None:
    training = load_config(study(write_study, bases["llama"], training={"steps": 40})).training
    causal = training.for_kind("causal")
    assert (causal.optimizer, causal.learning_rate, causal.dropout, causal.warmup_steps) == ("adamw", 3e-5, 0.0, 4)
    assert training.for_kind("causal", learning_rate=1e-3).learning_rate == 1e-3
    assert training.for_kind("t5") == training
    explicit = load_config(study(write_study, bases["llama"], training={"learning_rate": 5e-4, "dropout": 0.1})).training
    assert (explicit.for_kind("causal").learning_rate, explicit.for_kind("causal").dropout) == (5e-4, 0.1)
