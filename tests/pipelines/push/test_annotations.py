"""What a pushed data set holds, by dry runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import DatasetCard

from cotd.errors import CotdError
from cotd.study.config import StudyConfig
from pipelines.annotate.files import AnnotationFiles, read_annotations
from pipelines.push.annotations import COLUMNS, push_annotations


@pytest.fixture
def folder(annotated: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What would be pushed."""
    monkeypatch.chdir(tmp_path)
    push_annotations(annotated.directory, "me/mine", dry_run=True)
    return tmp_path / "runs/push/me/mine"


def test_every_annotation_has_its_text_and_gold_label(folder: Path, annotated: StudyConfig) -> None:
    table, made = pd.read_parquet(folder / "annotations.parquet"), read_annotations(annotated)
    assert made is not None
    assert list(table) == list(COLUMNS)
    shared = [c for c in made[0] if c in COLUMNS]
    pd.testing.assert_frame_equal(table[shared], made[0][shared], check_dtype=False)
    assert table["text"].str.contains("film, number").all()
    assert [("warm" in text) == (gold == "positive") for text, gold in zip(table["text"], table["gold_label"], strict=True)]
    assert table.loc[table["gold_conditioned"], "label"].equals(table.loc[table["gold_conditioned"], "gold_label"])


def test_the_card_has_counts_quality_and_terms(folder: Path, annotated: StudyConfig) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    for line in (
        "gave to 24 training texts, by the strategy `score_then_explain`", "48 rows, 46 of them usable.",
        "| the engine ran out of memory | 2 |", "The terms of the texts' source and of the teacher apply to this data set.",
        "of 12 test texts as the source does (95 % interval [", "| teacher accuracy on train |", "| rationales near duplicates |",
    ):  # fmt: skip
        assert line in text
    assert all(f"| `{column}` |" in text for column in COLUMNS)
    assert "| cost" not in text
    data = DatasetCard(text).data.to_dict()
    assert data["configs"][0]["data_files"] == [{"split": "train", "path": "annotations.parquet"}]


def test_endpoints_and_paths_are_not_published(annotated: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = AnnotationFiles.of(annotated).annotations
    table = pd.read_parquet(path)
    table["teacher"], table["revision"] = "/home/somebody/teacher", "http://10.0.0.1:8000/v1 chat, settings ab"
    table.to_parquet(path)
    push_annotations(annotated.directory, "me/mine", dry_run=True)
    pushed = pd.read_parquet(tmp_path / "runs/push/me/mine/annotations.parquet")
    assert set(pushed["teacher"]) == {"teacher"}
    assert set(pushed["revision"]) == {"URL chat, settings ab"}


def test_annotations_of_other_examples_are_refused(
    annotated: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = next((annotated.directory / "data").glob("examples-*.parquet"))
    table = pd.read_parquet(examples)
    table.drop(table.index[table["split"] == "train"][:4]).to_parquet(examples)
    with pytest.raises(CotdError, match=r"8 annotations in .* are of texts that are not among the study's examples"):
        push_annotations(annotated.directory, "me/mine", dry_run=True)
    assert list((tmp_path / "runs/push/me").iterdir()) == []


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CotdError) as refused:
        push_annotations(tmp_path, "me/mine", dry_run=True)
    assert [problem.rpartition(". ")[2] for problem in refused.value.problems] == [
        "Run `cotd annotate CONFIG` first.", "Run `cotd prepare CONFIG` first."
    ]  # fmt: skip
