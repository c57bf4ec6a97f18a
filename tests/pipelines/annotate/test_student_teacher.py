"""A student that is the teacher: what it is asked, token by token, makes it answer as the student itself does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from cotd.data.sources import load_examples
from cotd.data.table import encode_ids
from cotd.errors import CotdError
from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.study.config import StudyConfig, load_config
from cotd.tasks.base import Task
from cotd.tasks.registry import parse_task
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion, new_completion
from cotd.training.methods import METHODS
from pipelines.annotate.files import read_annotations
from pipelines.annotate.preview import preview
from pipelines.annotate.run import annotate
from tests.conftest import KINDS
from tests.pipelines.annotate.doubles import nobody
from tests.tasks import TICKETS
from tests.tiny_models import write_tiny

pytestmark = pytest.mark.thorough
GRID = {"method": ["distill"], "fraction": [1.0], "size": ["tiny"], "seed": [0]}


def make_student(
    folder: Path, task: Task, method: str, base: str = "llama", seen: Any = None, tokenizer: Any = None
) -> Student:
    """A student with random weights, saved to a folder."""
    model, tokenizer = load_base(str(write_tiny(base, folder / "base", tokenizer)), task.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for weights in model.parameters():  # large enough that texts differ in their answers
            torch.nn.init.normal_(weights, std=0.3)
    how = METHODS[method]
    card = {
        "method": method, "study": "earlier", "trial_id": "t1", "base": base, "writes_rationales": how.writes_rationales,
        "rationale_before_label": how.rationale_before_label, "rationale_after_label": how.rationale_after_label,
        "rationale_as_input": how.rationale_as_input, "max_input_tokens": 48, "max_target_tokens": 6, "temperature": 2.5,
        "truncation": "head_tail", "teacher": {"model": "gpt-x", "strategy": "chain_of_thought"},
    }  # fmt: skip
    student = Student(model, tokenizer, task, card, seen)
    student.temperature = 2.5
    student.save(folder / "student")
    return student


class StudentEngine:
    """Completes requests by a student's weights, as vLLM would, in float32."""

    def __init__(self, student: Student):
        self.student = student
        self.asked: list[Request] = []

    def complete(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        for request in requests:
            self.asked.append(request)
            yield [self.completion(request)]

    @torch.inference_mode()
    def completion(self, request: Request) -> Completion:
        assert request.tokens, "a student is asked in tokens"
        ids, sampling, model = torch.tensor([request.tokens]), request.sampling, self.student.model
        known: dict[str, Any] = {"text": "", "finish_reason": "stop", "prompt_tokens": ids.shape[1], "output_tokens": 1}
        if "allowed_token_ids" in sampling:
            scores = model(ids).logits[0, -1, sampling["allowed_token_ids"]].log_softmax(-1)
            return new_completion(request.key, **known, label_logprobs=scores.tolist())
        if scored := sampling.get("scored_tokens"):
            logs = model(ids).logits[0, -scored - 1 : -1].log_softmax(-1)
            return new_completion(request.key, **known, logprob=float(logs.gather(1, ids[0, -scored:, None]).sum()))
        written = self.student.backend.generate([list(request.tokens)], "label", sampling["max_tokens"])[0]
        text = self.student.tokenizer.decode(written, skip_special_tokens=True)
        return new_completion(request.key, **known | {"text": text, "logprob": -1.0})


def taught(path: Path, folder: Path, data: dict[str, int] | None = None) -> StudyConfig:
    """A study whose teacher is the student in a folder."""
    return load_config(
        path,
        [f"teacher.model={folder / 'student'}", "teacher.filters=[]", *(f"data.{key}={n}" for key, n in (data or {}).items())],
    )


@pytest.mark.parametrize("method", ["finetune", "cot_labelled", "cot_after", "cot_joint"])
@pytest.mark.parametrize("kind", ["labels", "options", "numbers"])
def test_a_student_labels_and_explains_as_it_would_by_itself(
    write_kind: Callable[..., Path], tmp_path: Path, kind: str, method: str
) -> None:
    student = make_student(tmp_path, parse_task(KINDS[kind]["task"]), method)
    if method == "cot_joint":  # what random weights write cannot be read back as the same tokens
        written = student.backend.words([student.task.joint_target("It is warm indeed.", "1000")])
        student.backend.generate = lambda sources, *_, **__: written * len(sources)  # type: ignore[method-assign]
    grid = {"method": ["distill"] if method == "finetune" else ["distill", "cot_labelled"]}
    config = taught(write_kind(kind, grid=GRID | grid), tmp_path, data={"train_rows": 8, "test_rows": 4})
    summary = annotate(config, StudentEngine(student).complete)
    teacher = summary["teacher"]
    assert (teacher["strategy"], teacher["student"]["trial_id"], teacher["n"]) == ("student", "t1", 4)
    assert teacher["student"]["teacher"]["model"] == "gpt-x", "its card says who taught it"
    assert summary["calibration"] is None

    table = (read_annotations(config) or (pd.DataFrame(),))[0]
    own, given = (table[table["gold_conditioned"] == by_gold].set_index("example_id") for by_gold in (False, True))
    train = load_examples(config.data, config.task).split("train")
    texts, choices = train["text"].to_list(), train["choices"].to_list() if kind == "options" else None
    rationales = student.explain(texts, choices) if student.can_explain else [""] * len(texts)
    for i, predicted, why in zip(train["id"], student.predict(texts, choices=choices), rationales, strict=True):
        row = own.loc[i]
        assert (row["label"] if pd.notna(row["label"]) else None) == predicted.label
        if predicted.probabilities:
            assert row["label_probability"] == pytest.approx(predicted.score, abs=2e-3)
            chances = list(predicted.probabilities.values())
            assert row["probabilities"][: len(chances)] == pytest.approx(chances, abs=2e-3)
        if row["error"] is None:
            assert row["rationale"] == " ".join(why.split())
    gold = train.set_index("id")["label"]
    assert (given["label"] == gold[given.index]).all()
    expected = gold.index if method == "cot_after" else own.index[own["label"] == gold[own.index]]
    assert set(given.index) == (set() if method == "finetune" else set(expected)), (
        "by its own label, unless it can be given one"
    )
    assert annotate(config, nobody)["digest"] == summary["digest"], "what is known is not asked again"
    assert len(list(preview(config, 1))) > 2


def test_who_cannot_teach(write_study: Callable[..., Path], tmp_path: Path, tiny_t5: Path) -> None:
    """Each is one message, before anything is asked."""
    task, wanted = parse_task("sentiment"), {"method": ["distill", "cot_labelled"]}
    seen_test = load_examples(load_config(write_study()).data, task).split("test")["id"].to_list()
    record = {"train": encode_ids(seen_test), "validation": encode_ids([])}
    cases = {
        "labels": (task, "finetune", "llama", None, "'cot_labelled' learns rationales.*'finetune', which writes none"),
        "encoder": (task, "finetune", "bert", None, "it is an encoder.*causal students alone can teach"),
        "t5": (task, "cot_labelled", "t5_v1_1", None, "encoder-decoder of the T5 family.*causal students alone"),
        "other": (TICKETS, "cot_after", "llama", None, "it is of the task 'tickets'"),
        "reader": (task, "rationale_input", "llama", None, "reads its own teacher's rationale"),
        "seen": (task, "cot_after", "llama", record, "was trained on 12 of the study's 12 test examples"),
    }
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    for name, (own, method, base, seen, message) in cases.items():
        make_student(tmp_path / name, own, method, base, seen, tokenizer)
        with pytest.raises(CotdError, match=message):
            annotate(taught(write_study(grid=GRID | wanted), tmp_path / name), nobody)
    with pytest.raises(CotdError, match="is not a trained student"):
        annotate(load_config(write_study(grid=GRID), [f"teacher.model={tiny_t5}", "teacher.strategy=student"]), nobody)


def test_labels_alone_are_asked_for_where_no_rationales_are_wanted(write_study: Callable[..., Path], tmp_path: Path) -> None:
    engine = StudentEngine(make_student(tmp_path, parse_task("sentiment"), "cot_after"))
    config = taught(write_study(grid=GRID, teacher={"rationales": False}), tmp_path, data={"train_rows": 8, "test_rows": 4})
    summary = annotate(config, engine.complete)
    assert summary["annotations"] == {"rows": 8, "examples": 8, "usable": 8, "quarantined": {}}
    assert len(engine.asked) == 12
    with pytest.raises(CotdError, match=r"teacher\.rationales is false"):
        load_config(tmp_path / "study.yaml", [f"teacher.model={tmp_path / 'student'}", "grid.method=[cot_labelled]"])
