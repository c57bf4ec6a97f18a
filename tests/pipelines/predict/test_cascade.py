"""A small student and a larger one in this process, and for whole files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from cotd.cli.app import main
from cotd.data.inputs import InputColumns
from cotd.students.student import Student
from cotd.students.validated import Validated
from pipelines.predict.cascade import Cascade
from pipelines.predict.files import scan
from pipelines.predict.run import StudentActor, added, write_predicted

TEXTS = ["A warm and funny film.", "Dull.", "Not bad at all.", "fine", "The jokes fall flat.", "I would see it again."]


@pytest.fixture(scope="module")
def students(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student that writes nothing and has two of TEXTS wrong on validation, and one with other weights that explains."""
    folders = []
    for seed, card in enumerate([{"writes_rationales": False}, {"writes_rationales": True}]):
        student = Student.load(student_folder, device="cpu")
        torch.manual_seed(seed)
        for weights in student.model.parameters():
            weights.data += 0.1 * torch.randn_like(weights)
        scores = np.array([p.score or 0.0 for p in student.predict(TEXTS)])
        right = scores > np.sort(scores)[1] if seed == 0 else np.array([True] * 6)
        student.card |= card
        student.validated = Validated(np.arange(6, dtype=np.uint64), scores, right)
        folders.append(tmp_path_factory.mktemp("cascade") / f"student-{seed}")
        student.save(folders[-1])
    return folders[0], folders[1]


def test_the_larger_student_answers_what_the_small_one_is_not_sure_of(students: tuple[Path, Path]) -> None:
    small, large = (Student.load(folder, device="cpu") for folder in students)
    cascade = Cascade.load(str(students[0]), str(students[1]))
    rows = cascade.predict(TEXTS, rationale=True)
    own, others, reasons = small.predict(TEXTS), large.predict(TEXTS), large.explain(TEXTS)
    assert [row["answered_by"] for row in rows].count("student") == 4, "the two that it has wrong are handed on"
    for row, mine, theirs, why in zip(rows, own, others, reasons, strict=True):
        expected = theirs if row["answered_by"] == "escalated" else mine
        assert (row["label"], row["score"]) == (expected.label, pytest.approx(expected.score, abs=1e-5))
        assert row["rationale"] == why, "only the larger one writes"
        assert (row["answered_by"] == "escalated") == (mine.score < cascade.threshold)


def test_whole_files_say_who_answered(students: tuple[Path, Path], tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    pd.DataFrame({"text": [*TEXTS, " "]}).to_csv(source, index=False)
    actor = StudentActor((str(students[0]), str(students[1]), "share=0.34"), None, InputColumns(), ["answered_by"])
    table = actor(pa.table({"text": [*TEXTS, " "]}))
    summary = write_predicted(scan(str(source)), str(tmp_path / "out.csv"), iter([table]), (), ["answered_by"])
    assert summary.escalated == 2
    assert "2 of them (33.3%) were handed on to the larger student." in summary.sentences
    assert pd.read_csv(tmp_path / "out.csv")["predicted_answered_by"].tolist().count("escalated") == 2
    assert "predicted_answered_by" not in added([])


def test_a_command_takes_both_students(
    students: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["cotd", "predict", "--local", "--student", str(students[0]), *arguments, *TEXTS])
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                return capsys.readouterr().err
        return capsys.readouterr().out

    larger = ("--escalate", str(students[1]))
    rows = json.loads(run(*larger, "--below", "share=0.5", "--json"))
    assert [row["answered_by"] for row in rows].count("escalated") == 3
    assert run(*larger, "--below", "share=0.5").count("[escalated]") == 3
    assert "name the larger student" in run("--below", "0.8")
    assert "below 'most' is not auto" in run(*larger, "--below", "most")
