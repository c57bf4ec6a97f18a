"""A study's students on another source's reviews: who is scored on what, and that nobody is scored twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cotd.errors import CotdError
from cotd.evaluation.metrics import gold_reviews
from cotd.students.student import Student
from pipelines.report import run as package
from pipelines.report.run import Elsewhere, report
from pipelines.report.text import markdown
from pipelines.report.transfer import transfer_folder
from tests.pipelines.report.conftest import Study

Make = Callable[..., Study]


@pytest.fixture
def trained(study: Make, student_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two seeds of `finetune`, whose students are on disk, and one of a method that reads rationales."""
    made = study(method=["finetune", "rationale_input"], fraction=[1.0]).finish_all()
    for trial in made.trials:
        shutil.copytree(student_folder, made.plan().folder(trial).student)
    monkeypatch.setattr(package, "plan_so_far", lambda config: (made.plan(), []))
    return made


def others(tmp_path: Path, texts: list[str]) -> Elsewhere:
    frame = pd.DataFrame({"said": texts, "stars": ["pos" if i % 3 else "neg" for i in range(len(texts))]})
    path = tmp_path / "kettles.csv"
    frame.to_csv(path, index=False)
    return Elsewhere(str(path), gold_reviews(str(path), "all", text="said", label="stars"))


def test_students_are_scored_on_reviews_that_the_study_has_not_seen(trained: Study, tmp_path: Path) -> None:
    elsewhere = others(tmp_path, [f"Kettle number {i} boils." for i in range(200)] + ["a  FILM."])
    content = report(trained.config, elsewhere)
    assert content["test_reviews"] == 200, "all but the one that the study trains on"
    assert [t["method"] for t in content["trials"]] == ["finetune", "finetune"], "nobody wrote rationales for these reviews"
    assert content["teacher"] is None
    folder = transfer_folder(trained.config, elsewhere.source)
    assert {p.name for p in folder.iterdir()} >= {"report.md", "report.html", "report.json", "accuracy.png"}
    student = Student.load(trained.plan().folder_of(content["trials"][0]["trial_id"]).student)
    shown = elsewhere.reviews[elsewhere.reviews["text"] != "a FILM."]
    right = [p.label == gold for p, gold in zip(student.predict(list(shown["text"])), shown["label"], strict=True)]
    assert content["trials"][0]["accuracy"] == pytest.approx(sum(right) / len(right))
    text = markdown(content)
    assert f"trained on `{trained.config.data.where}`, tested on `{elsewhere.source}`, 200 test reviews" in text
    assert "Beside the papers" not in text
    assert "Students of rationale_input read the teacher's rationales" in text
    assert not (trained.config.directory / "report.md").exists(), "the study's own report is another"


def test_a_review_that_the_study_trains_on_is_left_out(trained: Study, tmp_path: Path) -> None:
    seen = pd.DataFrame({"id": ["a", "b"], "text": ["a  FILM.", "A kettle."], "label": ["positive", "negative"]})
    content = report(trained.config, Elsewhere("kettles", seen))
    assert content["test_reviews"] == 1
    text = markdown(content)
    assert "1 test reviews, less 1 that the study trains or selects on. Accuracy is" in text
    with pytest.raises(CotdError, match="every review of it is one that small trains or selects on"):
        report(trained.config, Elsewhere("kettles", seen.head(1)))


def test_what_was_scored_is_not_scored_again(trained: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = others(tmp_path, [f"Kettle number {i} boils." for i in range(100)])
    first = report(trained.config, elsewhere)
    monkeypatch.setattr("pipelines.report.transfer.student_of", lambda plan, trial_id: pytest.fail("scored again"))
    assert report(trained.config, elsewhere)["groups"] == first["groups"]
    monkeypatch.undo()
    monkeypatch.setattr(package, "plan_so_far", lambda config: (trained.plan(), []))
    monkeypatch.setattr("pipelines.report.results.log_runs", lambda plan, trials: [])
    fewer = Elsewhere(elsewhere.source, elsewhere.reviews.head(5))
    assert report(trained.config, fewer)["test_reviews"] == 5, "other reviews under the same name are scored"
