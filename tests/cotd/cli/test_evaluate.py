"""`cotd evaluate`: a student of each kind of task against gold labels, and never on what it has seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cotd.cli.app import main
from cotd.errors import CotdError
from cotd.students.base_models import SEEN
from cotd.study.config import load_config
from pipelines.sweep.plan import plan_study
from pipelines.train import train

pytestmark = pytest.mark.thorough
STEPS = {"steps": 2, "eval_every": 2, "batch_size": 8}


@pytest.fixture
def trained(write_study: Callable[..., Path], write_kind: Callable[..., Path], tiny_t5: Path) -> Callable[..., Path]:
    """Trains a student of a kind of task for two steps; returns its folder."""

    def run(kind: str | None = None, **blocks: Any) -> Path:
        settings = {"sizes": {"tiny": str(tiny_t5)}, "training": STEPS} | blocks
        return train(load_config(write_kind(kind, **settings) if kind else write_study(**settings))).student

    return run


@pytest.fixture
def evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[dict[str, Any], str]]:
    """Runs the command: its JSON, or an empty dict, and what it says beside it."""

    def run(*arguments: object) -> tuple[dict[str, Any], str]:
        store = f"sqlite:///{tmp_path}/mlflow.db"
        monkeypatch.setattr("sys.argv", ["cotd", "evaluate", *map(str, arguments), "--tracking-uri", store])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, errors = capsys.readouterr()
        assert ended.value.code in (0, 2), errors
        return json.loads(out) if ended.value.code == 0 else {}, errors

    return run


@pytest.mark.parametrize(
    ("kind", "present", "absent"),
    [
        ("labels", {"macro_f1", "roc_auc", "expected_calibration_error", "recall_sky"}, {"answered"}),
        ("options", {"expected_calibration_error"}, {"macro_f1", "roc_auc", "answered"}),
        ("numbers", {"answered"}, {"macro_f1", "roc_auc", "expected_calibration_error"}),
    ],
)
def test_a_source_of_the_student_s_own_is_read_and_split_as_its_study_does(
    trained: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path, kind: str, present: set[str], absent: set[str]
) -> None:
    student = trained(kind)
    result = json.loads((student.parent / "result.json").read_text())
    scores, _ = evaluate(student, tmp_path / "reviews.csv")
    assert scores["n"] == 12, "the test rows of the split column, and of no other split"
    assert scores["seen"] == 0
    assert scores["accuracy"] == result["test"]["accuracy"]
    assert present <= scores.keys()
    assert not absent & scores.keys()
    for split in ("train", "validation"):
        scores, errors = evaluate(student, tmp_path / "reviews.csv", "--split", split)
        assert not scores
        assert "the student was trained on or selected by all 24 examples" in errors


def test_what_a_student_has_seen_is_left_out_whatever_the_file_is_called(
    trained: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path, example_rows: pd.DataFrame
) -> None:
    student = trained(grid={"method": ["finetune"], "fraction": [0.5], "size": ["tiny"], "seed": [0]})
    example_rows.drop(columns="split").rename(columns={"text": "words"}).to_json(
        tmp_path / "again.jsonl", orient="records", lines=True
    )
    scores, said = evaluate(student, tmp_path / "again.jsonl", "--split", "all", "--text", "words")
    # Half of the 24 training examples were used; the 24 of validation chose the step; test has 12.
    assert (scores["n"], scores["seen"]) == (24, 36)
    assert "36 of 60 examples are left out: the student was trained on or selected by them" in said


def test_a_student_without_a_record_says_so(trained: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path) -> None:
    student = trained()
    (student / SEEN).unlink()
    scores, said = evaluate(student, tmp_path / "reviews.csv", "--split", "all")
    assert (scores["n"], scores["seen"]) == (60, None)
    assert "without a record of what it was trained on" in said
    (tmp_path / "far.csv").write_text("text,label\n水壶很好,positive\n水壶很坏,negative\n", encoding="utf-8")
    assert (
        "2 of 2 texts have characters that the student cannot read"
        in evaluate(student, tmp_path / "far.csv", "--split", "all")[1]
    )


def test_a_missing_column_and_a_template_that_does_not_fit_are_one_message(
    trained: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    student = trained("labels")
    other = tmp_path / "other.csv"
    other.write_text("headline,label\nabout the sky,sky\n")
    assert "title" in evaluate(student, other, "--split", "all")[1]
    assert evaluate(student, other, "--split", "all", "--text", "headline")[0]["n"] == 1
    assert "--choices is for multiple choice" in evaluate(student, other, "--choices", "label")[1]


def test_rows_of_one_group_widen_the_interval(
    write_study: Callable[..., Path], tiny_t5: Path, evaluate: Callable[..., Any], tmp_path: Path, example_rows: pd.DataFrame
) -> None:
    rows = example_rows.assign(film=[f"{split} {i // 4}" for i, split in enumerate(example_rows["split"])])
    columns = {"split": "split", "group": "film"}
    study = write_study(rows, {"columns": columns}, sizes={"tiny": str(tiny_t5)}, training=STEPS)
    scores, _ = evaluate(train(load_config(study)).student, tmp_path / "reviews.csv")
    assert (scores["n"], scores["n_groups"]) == (12, 3)
    assert scores["ci_high"] - scores["ci_low"] > 0.6


def test_a_base_that_has_seen_the_test_examples_is_refused(
    trained: Callable[..., Path], write_study: Callable[..., Path], example_rows: pd.DataFrame
) -> None:
    student = trained()
    sizes = {"tiny": str(student)}
    plan_study(load_config(write_study(sizes=sizes, training=STEPS)))  # the same split: a second stage
    swapped = example_rows.assign(
        split=example_rows["split"].map({"train": "test", "validation": "validation", "test": "train"})
    )
    with pytest.raises(CotdError, match="was trained on 24 of the study's 24 test examples"):
        plan_study(load_config(write_study(swapped, sizes=sizes, training=STEPS)))
