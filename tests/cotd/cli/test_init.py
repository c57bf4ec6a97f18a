"""`cotd init`: files as people have them, and the studies that are written for them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from cotd.cli.app import main
from cotd.data.sources import load_examples
from cotd.study.config import StudyConfig, load_config

WORDS = ["apple", "river", "stone", "cloud", "horse", "table", "music", "field", "light", "paper"]
TEXTS = [f"The {a} is near the {b}." for a in WORDS for b in WORDS]


def init(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["cotd", "init", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)

    def written(columns: dict[str, list[object]], name: str = "mine.csv", *arguments: str) -> StudyConfig:
        frame = pd.DataFrame(columns)
        frame.to_parquet(name) if name.endswith(".parquet") else frame.to_csv(name, index=False)
        assert init(name, *arguments, monkeypatch=monkeypatch) == 0
        config = load_config(Path(name).with_suffix(".yaml"))
        examples = load_examples(config.data, config.task)
        assert not examples.counts["quarantined"]
        return config

    return written


def test_labels_of_ones_own(study, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    config = study({"id": range(100), "message": TEXTS, "topic": ["no", "bug", "on: hold", "bug"] * 24 + ["Bug"] * 4})
    assert config.task.labels == ("bug", "no", "on: hold")
    assert (config.data.columns.text, config.data.columns.label) == ("message", "topic")
    assert (config.task.noun, config.task.label_name) == ("message", "Topic"), "prompts ask for them by the columns' names"
    printed = capsys.readouterr().out
    assert "100 rows" in printed
    assert "bug (52)" in printed
    assert "not used: column id" in printed


def test_what_else_the_columns_may_be_is_said(study, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    columns = {"title": TEXTS[::-1], "body": TEXTS, "sender": WORDS * 10, "folder": ["late bill", "late fee"] * 50}
    config = study(columns)
    assert (config.data.columns.label, config.data.columns.text) == ("folder", "body"), "the fewest values; the usual name"
    assert config.teacher.strategy == "chain_of_thought", "the labels begin alike"
    printed = capsys.readouterr().out
    assert "if column sender is the answer: --label sender" in printed
    assert "if column title is part of the text: --text body --text title" in printed


def test_two_texts_and_the_labels_of_a_built_in_task(study) -> None:  # type: ignore[no-untyped-def]
    labels = ["entailment", "neutral", "contradiction", "neutral"] * 25
    config = study({"premise": TEXTS, "hypothesis": TEXTS[::-1], "gold": labels, "explanation": ["It is so."] * 100})
    assert config.task.name == "nli"
    assert config.data.input == "premise: {premise} hypothesis: {hypothesis}"


def test_numbers_that_stand_for_labels_are_not_guessed(study) -> None:  # type: ignore[no-untyped-def]
    assert study({"text": TEXTS, "label": [0, 1] * 50}).task.labels == ("0", "1")


def test_stars_are_labels_and_many_numbers_are_answers(study) -> None:  # type: ignore[no-untyped-def]
    config = study({"review": TEXTS, "stars": [1, 2, 5, 4, 3] * 20})
    assert config.task.labels == ("1", "2", "3", "4", "5")
    assert config.teacher.strategy == "score_then_explain"
    config = study({"question": TEXTS, "answer": range(100)}, "sums.csv")
    assert (config.task.kind, config.teacher.strategy) == ("numeric", "chain_of_thought")


@pytest.mark.parametrize("name", ["quiz.csv", "quiz.parquet"])
def test_a_column_of_lists_is_multiple_choice(study, name: str) -> None:  # type: ignore[no-untyped-def]
    options = [["a wall", "the sea", "a roof"]] * 100
    columns = {
        "question": TEXTS,
        "choices": [json.dumps(o) for o in options] if name.endswith("csv") else options,
        "answer_key": ["A", "B"] * 50,
        "answer": ["a wall", "the sea"] * 50,
        "split": ["train", "train", "dev", "test"] * 25,
    }
    config = study(columns, name)
    columns = config.data.columns
    assert config.task.kind == "multiple_choice"
    assert (columns.text, columns.choices, columns.label, columns.split) == ("question", "choices", "answer", "split")


def test_nothing_is_overwritten_and_what_cannot_be_seen_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"text": TEXTS}).to_csv("texts.csv", index=False)
    assert init("texts.csv", monkeypatch=monkeypatch) == 2
    assert "no column holds labels (it has: text). Name it: --label COLUMN." in capsys.readouterr().err
    assert not Path("texts.yaml").exists()
    Path("texts.yaml").write_text("name: mine\n")
    assert init("texts.csv", monkeypatch=monkeypatch) == 2
    assert "exists already" in capsys.readouterr().err
    assert Path("texts.yaml").read_text() == "name: mine\n"
    assert init("texts.csv", "--label", "lable", "--output", "b.yaml", monkeypatch=monkeypatch) == 2
    assert "no column 'lable'" in capsys.readouterr().err
