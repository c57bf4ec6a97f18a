"""Exports as used elsewhere: the Python of the folder's own README is run."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cotd.cli.app import main
from cotd.errors import CotdError
from cotd.students.seen import seen_by
from cotd.students.student import Student
from cotd.tasks.samples import SAMPLES
from serve.runtimes import export
from serve.runtimes.export import FORMATS, export_student
from serve.runtimes.parity import PROBES
from tests.serve.runtimes.conftest import need

pytestmark = pytest.mark.thorough
TEXTS = [sample.text for sample in SAMPLES["sentiment"][:2]]  # those of the README


def rows_by_readme(folder: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str] = TEXTS) -> dict[str, Any]:
    """What the Python of an export's README prints for `texts`: label → the texts' probabilities."""
    snippet = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert snippet is not None
    imports = re.search(r"^(import|from)\b.*\b(cotd|serve|pipelines)\b", snippet[1], re.MULTILINE)
    assert imports is None, "cotd is not installed elsewhere"
    assert f'["{TEXTS[0]}", "{TEXTS[1]}"]' in snippet[1]
    code = snippet[1].replace(f'["{TEXTS[0]}", "{TEXTS[1]}"]', repr(texts))
    monkeypatch.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), {})
    labels, rows = printed.getvalue().strip().split("] [[")
    return dict(zip(ast.literal_eval(labels + "]"), zip(*ast.literal_eval("[[" + rows), strict=True), strict=True))


def expected_rows(student: Student, texts: list[str]) -> dict[str, Any]:
    predictions = student.predict(texts)
    return {label: pytest.approx([p.probabilities[label] for p in predictions], abs=1e-4) for label in student.task.labels}


@pytest.mark.parametrize("truncation", ["head", "head_tail"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_readme_of_an_export_reads_what_the_student_reads_of_a_long_text(
    student: Student, tmp_path: Path, format: str, truncation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(FORMATS[format])
    card = {**student.card, "max_input_tokens": 24, "truncation": truncation}
    seen = {"train": np.array([1], np.uint64), "validation": np.array([], np.uint64)}
    reader = Student(student.model, student.tokenizer, student.task, card, seen)
    export_student(reader, tmp_path / "student", format)
    assert {split: list(ids) for split, ids in (seen_by(tmp_path / "student") or {}).items()} == {
        "train": [1],
        "validation": [],
    }
    texts = ["A warm and funny film. " * 9 + "Not!", TEXTS[1]]
    assert rows_by_readme(tmp_path / "student", monkeypatch, texts) == expected_rows(reader, texts)
    ends = reader.predict([texts[0], texts[0].replace("Not!", "Indeed, and once more!")])
    assert (ends[0].score != ends[1].score) == (truncation == "head_tail")


@pytest.mark.parametrize("format", FORMATS)
def test_the_readme_of_an_export_gives_the_students_probabilities(
    student: Student, student_folder: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run here and not by a Python of its own, which would take seconds to import what is imported already."""
    need(FORMATS[format])
    target = tmp_path / "out" / "student"
    monkeypatch.setattr("sys.argv", ["cotd", "export", str(student_folder), str(target), "--format", format])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert rows_by_readme(target, monkeypatch) == expected_rows(student, TEXTS)
    assert sorted(p.name for p in target.parent.iterdir()) == ["student"]


def test_an_export_that_differs_is_removed(student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_and_load = export.write_and_load

    def spoiled(*arguments: Any) -> Any:
        read_back = write_and_load(*arguments)
        weight = read_back.student.model.shared.weight
        weight.data += torch.randn_like(weight)
        return read_back

    monkeypatch.setattr(export, "write_and_load", spoiled)
    with pytest.raises(CotdError, match=r"the export failed and was removed: .*a probability differs by"):
        export_student(student, tmp_path / "student", "hf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("needs", ["rationale_before_label", "rationale_as_input"])
def test_a_student_whose_label_is_not_the_first_word_is_refused(student: Student, tmp_path: Path, needs: str) -> None:
    """The README that comes with an export scores the label words in the decoder's first step."""
    other = Student(student.model, student.tokenizer, student.task, {"method": "cot_joint"})
    other.card[needs] = True
    with pytest.raises(CotdError, match="a student trained by 'cot_joint' cannot be exported"):
        export_student(other, tmp_path / "student", "hf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("base", "name", "problem"),
    [
        ("llama", "tickets", "an export computes T5, and this student is a llama"),
        (None, "quiz", "the task 'quiz' is multiple_choice"),
    ],
)
def test_a_student_whose_label_takes_more_than_one_step_of_a_t5_is_refused(
    student_of: Any, tmp_path: Path, base: str | None, name: str, problem: str
) -> None:
    for format in FORMATS:
        need(FORMATS[format])
        with pytest.raises(CotdError, match=problem):
            export_student(Student.load(student_of(name, base), "cpu"), tmp_path / "student", format)
    assert not (tmp_path / "student").exists()


def test_an_export_replaces_nothing(student: Student, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(CotdError, match=r"exists already\. Name another folder"):
        export_student(student, tmp_path, "hf")
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_an_unknown_format(student: Student, tmp_path: Path) -> None:
    with pytest.raises(CotdError, match=r"unknown format 'onxx'; known: hf, onnx, ctranslate2. Did you mean 'onnx'\?"):
        export_student(student, tmp_path / "student", "onxx")


def test_ctranslate2_scales_the_decoders_output_only_where_it_was_trained_so(student: Student) -> None:
    """transformers 5 calls every T5 tied; 1.1 does not scale (Shazeer 2020), 1.0 does (Raffel et al. 2020)."""
    need(FORMATS["ctranslate2"])
    from transformers import T5Config, T5ForConditionalGeneration

    from serve.runtimes.ctranslate2 import ctranslate2_scorer

    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    for tied in (True, False):
        kind = {"feed_forward_proj": "relu" if tied else "gated-gelu", "tie_word_embeddings": tied}
        config = T5Config(vocab_size=len(student.tokenizer), decoder_start_token_id=0, **shape, **kind)
        torch.manual_seed(0)
        other = Student(T5ForConditionalGeneration(config), student.tokenizer, student.task, {"max_input_tokens": 32})
        logits, _ = ctranslate2_scorer(other, "float32").label_logits(PROBES)
        assert torch.allclose(logits, other.label_logits(PROBES)[0], atol=1e-3, rtol=1e-3)
