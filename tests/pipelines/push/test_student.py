"""What a pushed student's folder holds, by dry runs; the Python of its card is run."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from cotd.errors import CotdError
from cotd.students.student import Student
from pipelines.push.student import push_student


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What would be pushed."""
    monkeypatch.chdir(tmp_path)
    assert push_student(str(trained), "me/mine", dry_run=True).endswith(
        "What would be pushed to me/mine is in runs/push/me/mine."
    )
    return tmp_path / "runs/push/me/mine"


def snippets(folder: Path) -> list[str]:
    """The Python of the card, loading from the folder."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    return [code.replace("me/mine", str(folder)) for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL)]


def printed(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), {})
    return out.getvalue()


def test_the_folder_holds_the_student(folder: Path, trained: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {p.name for p in trained.iterdir()} | {"README.md"}
    assert Student.load(folder, "cpu").predict(["A warm and funny film."]) == Student.load(trained, "cpu").predict(
        ["A warm and funny film."]
    )


def test_what_the_student_has_seen_and_answered_goes_with_it(folder: Path) -> None:
    student = Student.load(folder, "cpu")
    assert student.seen is not None
    assert {split: list(ids) for split, ids in student.seen.items()} == {"train": [1, 2], "validation": [3]}
    assert student.validated is not None
    assert [column.tolist() for column in student.validated] == [[3], [0.75], [True]]


def test_the_card_says_how_the_student_was_trained_and_measured(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    for line in (
        "review → one of negative, positive", "| method | `cot_labelled`: labelled CoT distillation |", "| seed | 3 |",
        "| fraction of the training examples | 10 % |", "| examples | reviews.csv, test.csv |",
        "| teacher | teacher (score_then_explain), 87.6% of 500 test examples right |",
        "| test | 82.3% | [70.0%, 90.0%] | 1,000 |", "Of texts of more than 64 tokens their end is not read.",
    ):  # fmt: skip
        assert line in text
    data = ModelCard(text).data
    assert (data.license, data.base_model, data.metrics) == ("apache-2.0", None, ["accuracy", "f1", "roc_auc"])
    assert {"cotd", "sentiment", "cot_labelled", "distillation"} <= set(data.tags)
    assert [r.metric_value for r in data.eval_results] == [0.8234, 0.8, 0.85]


def test_places_of_the_machine_are_not_published(folder: Path) -> None:
    assert not [p.name for p in folder.iterdir() if "/home/somebody" in p.read_text(encoding="utf-8", errors="ignore")]
    assert json.loads((folder / "cotd.json").read_text())["base"] == "t5"


def test_a_base_model_on_the_hub_is_named(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    student = Student.load(trained, "cpu")
    student.card["base"] = "my-org/my-t5"
    student.save("changed")
    push_student("changed", "me/mine", dry_run=True)
    assert ModelCard.load(tmp_path / "runs/push/me/mine/README.md").data.base_model == "my-org/my-t5"


@pytest.mark.parametrize("truncation", ["head", "head_tail"])
@pytest.mark.parametrize("text", ["A warm and funny film.", "A warm and funny film. " * 20 + "Not!"])
def test_both_snippets_of_the_card_give_the_students_label(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truncation: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    student = Student.load(trained, "cpu")
    # The card's logits are printed, too: labels of a random model hardly depend on the text.
    student.card["truncation"] = truncation
    student.save("changed")
    push_student("changed", "me/mine", dry_run=True)
    reader = Student.load("changed", "cpu")
    by_cotd, by_transformers = (
        code.replace("A warm and funny film.", text) for code in snippets(tmp_path / "runs/push/me/mine")
    )
    label = reader.predict([text])[0].label
    assert printed(by_cotd).splitlines()[0] == label
    lines = printed(by_transformers + "print([logits[i].item() for i in first_tokens.values()])\n").splitlines()
    assert lines[0] == label
    assert json.loads(lines[1]) == pytest.approx(reader.label_logits([text])[0][0].tolist(), abs=1e-3)


def test_a_student_of_gold_labels_names_no_teacher(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    student = Student.load(trained, "cpu")
    student.card |= {"method": "finetune", "writes_rationales": False}
    student.save("changed")
    push_student("changed", "me/mine", dry_run=True)
    text = (tmp_path / "runs/push/me/mine/README.md").read_text()
    assert "| teacher |" not in text
    assert "distillation" not in ModelCard(text).data.tags
    assert "rationale" not in text


def test_a_student_that_writes_its_rationale_first_is_used_with_cotd(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    student = Student.load(trained, "cpu")
    student.card |= {"method": "cot_joint", "rationale_before_label": True}
    student.save("changed")
    push_student("changed", "me/mine", dry_run=True)
    assert len(snippets(tmp_path / "runs/push/me/mine")) == 1


def test_a_dry_run_replaces_an_earlier_one(folder: Path, trained: Path) -> None:
    (folder / "old.txt").write_text("old")
    push_student(str(trained), "me/mine", dry_run=True)
    assert not (folder / "old.txt").exists()


def test_a_base_model_is_refused(embedded_student: Path) -> None:
    with pytest.raises(CotdError, match="'embedded:t5-mini' is a base model, which cotd has not trained"):
        push_student("embedded:t5-mini", "me/mine", dry_run=True)
