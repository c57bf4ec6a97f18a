"""Students scored for a report alone: which examples they are scored on, once each, and base models before training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from cotd.errors import CotdError
from cotd.evaluation.gold import NamedColumns, gold_examples
from cotd.students.student import Student
from pipelines.report import run as package
from pipelines.report.figures import figures_of, rendered
from pipelines.report.findings import findings
from pipelines.report.rescoring import OtherSource, base_scores, transfer_folder
from pipelines.report.run import report
from pipelines.report.text import markdown
from tests.pipelines.report.studies import Make, Study, content
from tests.tasks import SENTIMENT


@pytest.fixture
def trained(study: Make, student_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two seeds of `finetune`, whose students are on disk, and one of a method that reads rationales."""
    made = study(method=["finetune", "rationale_input"], fraction=[1.0]).finish_all()
    for trial in made.trials:
        shutil.copytree(student_folder, made.plan().folder(trial).student)
    monkeypatch.setattr(package, "plan_so_far", lambda config: (made.plan(), []))
    return made


def others(tmp_path: Path, texts: list[str]) -> OtherSource:
    frame = pd.DataFrame({"example": texts, "stars": ["pos" if i % 3 else "neg" for i in range(len(texts))]})
    path = tmp_path / "kettles.csv"
    frame.to_csv(path, index=False)
    return OtherSource(str(path), gold_examples(str(path), SENTIMENT, "all", NamedColumns(text="example", label="stars")))


def test_students_are_scored_on_examples_that_the_study_has_not_seen(trained: Study, tmp_path: Path) -> None:
    other = others(tmp_path, [f"Kettle number {i} boils." for i in range(200)] + ["a  FILM."])
    content = report(trained.config, other)
    assert content["test_examples"] == 200, "all but the one that the study trains on"
    assert [t["method"] for t in content["trials"]] == ["finetune", "finetune"], "nobody wrote rationales for these examples"
    assert content["teacher"] is None
    folder = transfer_folder(trained.config, other.name)
    assert {p.name for p in folder.iterdir()} >= {"report.md", "report.html", "report.json", "accuracy.png"}
    student = Student.load(trained.plan().folder_of(content["trials"][0]["trial_id"]).student)
    shown = other.examples[other.examples["text"] != "a FILM."]
    right = [p.label == gold for p, gold in zip(student.predict(list(shown["text"])), shown["label"], strict=True)]
    assert content["trials"][0]["accuracy"] == pytest.approx(sum(right) / len(right))
    text = markdown(content)
    assert f"trained on `{trained.config.data.source_name}`, tested on `{other.name}`, 200 test examples" in text
    assert "Compared with the papers" not in text
    assert "Students of rationale_input are left out" in text
    assert not (trained.config.directory / "report.md").exists(), "the study's own report is another"


def test_an_example_that_the_study_trains_on_is_left_out(trained: Study, tmp_path: Path) -> None:
    seen = pd.DataFrame({"id": ["a", "b"], "text": ["a  FILM.", "A kettle."], "label": ["positive", "negative"]})
    content = report(trained.config, OtherSource("kettles", seen))
    assert content["test_examples"] == 1
    text = markdown(content)
    assert "1 test examples, without 1 that the study trains or selects on. Accuracy is" in text
    with pytest.raises(CotdError, match="small trains or selects on all its examples"):
        report(trained.config, OtherSource("kettles", seen.head(1)))


def test_what_was_scored_is_not_scored_again(trained: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = others(tmp_path, [f"Kettle number {i} boils." for i in range(100)])
    first = report(trained.config, other)
    monkeypatch.setattr("pipelines.report.rescoring.load_student", lambda plan, trial_id: pytest.fail("scored again"))
    assert report(trained.config, other)["groups"] == first["groups"]
    monkeypatch.undo()
    monkeypatch.setattr(package, "plan_so_far", lambda config: (trained.plan(), []))
    monkeypatch.setattr("pipelines.report.results.log_runs", lambda plan, trials: [])
    fewer = OtherSource(other.name, other.examples.head(5))
    assert report(trained.config, fewer)["test_examples"] == 5, "other examples under the same name are scored"


def test_a_base_that_learned_the_labels_in_pretraining_is_scored_as_it_is(
    study: Make, embedded_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = study(size=["tiny", "small"]).finish_all()
    texts = ["A warm and funny film.", "Dull and lifeless.", "I loved it.", "A waste of time."]
    examples = pd.DataFrame({"id": list("abcd"), "text": texts, "label": ["positive", "negative"] * 2})
    (base,) = base_scores(made.plan(), made.results(), examples, tmp_path)  # the small one is a bare T5
    predicted = [p.label for p in Student.load(embedded_student).predict(texts)]
    assert (base["size"], base["n"]) == ("tiny", 4)
    assert base["accuracy"] == sum(p == gold for p, gold in zip(predicted, examples["label"], strict=True)) / 4 >= 0.75
    monkeypatch.setattr(Student, "load", lambda source: pytest.fail("scored again"))
    assert base_scores(made.plan(), made.results(), examples, tmp_path) == [base]


def test_the_base_before_training_is_in_tables_sentences_and_figures(study: Make) -> None:
    whole = content(study().finish_all())
    base = {"size": "tiny", "model": "embedded:t5-mini", "accuracy": 0.72, "ci_low": 0.65, "ci_high": 0.78, "n": 200}
    sentences = [s for s in findings(whole | {"bases": [base]}) if "before this training" in s]
    assert sentences == [
        "No student is clearly better than embedded:t5-mini before this training, 72.0 % [65.0, 78.0]: what it knows comes from "
        "its pretraining."
    ]
    assert not any("before this training" in s for s in findings(whole | {"bases": [base | {"accuracy": 0.5}]}))
    assert "| `embedded:t5-mini` before this training |  | 72.0 % [65.0, 78.0] |" in markdown(whole | {"bases": [base]})
    for figure in figures_of(whole | {"bases": [base]}):
        assert rendered(figure, whole | {"bases": [base]})[0].startswith(b"\x89PNG")
