"""A study whose annotations a language model wrote already: read from a file, on the real path, and nobody is asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cotd.data.sources import load_examples
from cotd.errors import CotdError
from cotd.study.config import StudyConfig, load_config
from cotd.training.methods import METHODS
from cotd.training.pairs import training_pairs
from pipelines.annotate.files import AnnotationFiles, read_annotations
from pipelines.annotate.preview import preview
from pipelines.annotate.run import annotate
from pipelines.annotate.summary import summary_lines
from pipelines.sweep.plan import check_annotations
from tests.tasks import SENTIMENT

GRID = {"method": ["distill", "cot_labelled", "cot_unlabelled"], "fraction": [1.0], "size": ["tiny"], "seed": [0]}
COLUMNS = {"label": "said", "rationale": "why", "gold_rationale": "told"}


@pytest.fixture
def said_by_gpt(example_rows: pd.DataFrame) -> pd.DataFrame:
    """The 60 examples with what a model said beside them: right but for the first test example, and one of another word."""
    said = [label.capitalize() + "." for label in example_rows["label"]]
    said[3], said[48] = "Mixed feelings", "Negative"
    why = [f"The reviewer calls number {i} what it is." for i in range(60)]
    why[5] = ""
    told = [f"It is {label}, as its words say." for label in example_rows["label"]]
    return example_rows.assign(said=said, why=why, told=told, sure=[0.9] * 60)


@pytest.fixture
def beside(write_study: Callable[..., Path], said_by_gpt: pd.DataFrame, tmp_path: Path) -> Callable[..., StudyConfig]:
    """A study with completions in a file of their own, of which a test says what it holds."""

    def make(rows: pd.DataFrame = said_by_gpt, columns: dict[str, Any] = COLUMNS, overrides: Sequence[str] = ()) -> StudyConfig:
        path = tmp_path / "imported.parquet"
        rows.to_parquet(path)
        teacher = {"model": "gpt-3.5-turbo", "imported": {"source": str(path), "columns": columns}}
        return load_config(write_study(teacher=teacher, grid=GRID), list(overrides))

    return make


def test_columns_of_the_examples_own_file(write_study: Callable[..., Path], said_by_gpt: pd.DataFrame) -> None:
    teacher = {"model": "gpt-3.5-turbo", "imported": {"columns": COLUMNS | {"label_probability": "sure"}}}
    config = load_config(write_study(said_by_gpt, teacher=teacher, grid=GRID))
    summary = annotate(config)
    table, _ = read_annotations(config) or (pd.DataFrame(), None)
    assert len(table) == 48
    assert set(table["teacher"]) == {"gpt-3.5-turbo"}
    assert summary["teacher"]["model"] == "gpt-3.5-turbo"
    assert (summary["teacher"]["n"], summary["teacher"]["accuracy"]) == (12, 11 / 12)
    assert summary["quality"]["labels"]["calibration_error"] == pytest.approx(abs(0.9 - 11 / 12))
    other = "the label is not one of negative, positive"
    short = "rationale is empty or shorter than three words"
    assert summary["annotations"] == {"rows": 48, "examples": 24, "usable": 46, "quarantined": {other: 1, short: 1}}
    assert summary["imported"]["other_labels"] == {"Mixed feelings": 1}
    assert summary["usage"] == {}
    assert AnnotationFiles.of(config).page.is_file()
    # Students learn from them as from any others.
    examples = load_examples(config.data, config.task)
    assert check_annotations(config, examples.digest()) is not None
    pairs = {
        name: training_pairs(METHODS[name], examples.split("train"), table, SENTIMENT)["target_kind"].value_counts().to_dict()
        for name in GRID["method"]
    }
    assert pairs == {
        "distill": {"label": 22}, "cot_labelled": {"label": 24, "rationale": 24}, "cot_unlabelled": {"label": 22, "rationale": 22}
    }  # fmt: skip


def test_a_csv_of_completions_about_some_examples(
    write_study: Callable[..., Path], said_by_gpt: pd.DataFrame, tmp_path: Path
) -> None:
    some = said_by_gpt.iloc[[*range(10), 0, 0, 48, 49, 50]].assign(text=lambda table: "  " + table["text"].str.upper() + "<br>")
    some.loc[2, "text"] = "A text that is no example."
    file = tmp_path / "imported.csv"
    some[["text", "said", "why"]].rename(columns={"text": "example"}).to_csv(file, index=False)
    teacher = {
        "model": "gpt-4",
        "imported": {"source": str(file), "columns": {"text": "example", "label": "said", "rationale": "why"}},
    }
    config = load_config(write_study(teacher=teacher, grid=GRID | {"method": ["distill"]}))
    summary = annotate(config)
    table = pd.read_parquet(AnnotationFiles.of(config).annotations)
    three = table[table["example_id"].isin(table[table["sample"] == 2]["example_id"])]
    assert list(three["sample"]) == [0, 1, 2]
    assert list(three["label_probability"]) == [1.0] * 3, "the share of samples that agree"
    assert len(table) == 11
    counts = summary["imported"]
    assert (counts["rows"], counts["matched"], counts["examples"], counts["samples"]) == (15, 14, 12, 3)
    assert (counts["without_row_train"], counts["without_row_test"]) == (15, 9)
    assert (summary["teacher"]["n"], summary["teacher"]["accuracy"]) == (3, 2 / 3), "of those that the file has"
    aside = pd.read_parquet(AnnotationFiles.of(config).quarantined_imported).sort_values("row")
    assert list(aside["row"]) == [3, 4, 6]
    assert aside["reason"].iloc[0] == "no example of the study has this text"
    assert list(aside["label"]) == ["Positive.", "Mixed feelings", "Negative."]
    lines = "\n".join(summary_lines(summary, AnnotationFiles.of(config).annotations))
    for line in (
        "14 of 15 rows of ",
        "1 × 'Mixed feelings'",
        "15 training examples have no row",
        "quarantined_imported.parquet",
    ):
        assert line in lines
    assert "--retry-errors" not in lines
    assert "14 of 15 rows" in "\n".join(preview(config, rows=2))


def test_files_are_known_by_their_content(beside: Callable[..., StudyConfig], said_by_gpt: pd.DataFrame) -> None:
    config = beside()
    first = annotate(config)
    examples = load_examples(config.data, config.task)
    assert check_annotations(config, examples.digest()) is not None
    beside(said_by_gpt.assign(why="It is what it is, says another model."))
    with pytest.raises(CotdError, match=r"Run `cotd annotate CONFIG` again"):
        check_annotations(config, examples.digest())
    assert annotate(config)["digest"] != first["digest"]
    beside(said_by_gpt.sample(frac=1.0, random_state=0))
    assert annotate(config)["digest"] == first["digest"], "in whatever order its rows are"


def test_one_column_for_both_kinds_of_rationale(beside: Callable[..., StudyConfig], said_by_gpt: pd.DataFrame) -> None:
    wrong = said_by_gpt.assign(said=["Negative", *said_by_gpt["said"][1:]])
    summary = annotate(beside(wrong, COLUMNS | {"gold_rationale": "why"}))
    assert summary["annotations"]["quarantined"]["the rationale is for a label other than gold"] == 1
    assert summary["annotations"]["rows"] == 48
    without = beside(said_by_gpt, {"label": "said", "rationale": "why"})
    annotate(without)
    with pytest.raises(CotdError, match=r"cot_labelled needs .* teacher\.imported\.columns\.gold_rationale"):
        check_annotations(without, load_examples(without.data, without.task).digest())


def test_rationales_given_gold_alone(beside: Callable[..., StudyConfig]) -> None:
    summary = annotate(beside(columns={"gold_rationale": "told"}))
    assert summary["annotations"] == {"rows": 24, "examples": 24, "usable": 24, "quarantined": {}}
    assert summary["teacher"]["accuracy"] is None


def test_labels_alone(beside: Callable[..., StudyConfig]) -> None:
    config = beside(columns={"label": "said", "gold_rationale": "told"}, overrides=["grid.method=[distill,cot_labelled]"])
    summary = annotate(config)
    # All but the row of another word: also the one whose rationale, of which nobody asked, is empty.
    assert summary["annotations"]["usable"] == 47
    assert summary["quality"]["rationales"]["rows"] == 24, "those given gold"
    judging = "teacher.filters=[length, near_duplicates, {names_the_label: {keep: without}}]"
    config = beside(columns={"label": "said"}, overrides=["grid.method=[distill]", judging])
    summary = annotate(config)
    assert summary["annotations"] == {
        "rows": 24, "examples": 24, "usable": 23, "quarantined": {"the label is not one of negative, positive": 1}
    }  # fmt: skip
    assert (summary["teacher"]["accuracy"], summary["quality"]["rationales"]) == (11 / 12, {"rows": 0})
    assert not any(line.startswith("rationales:") for line in summary_lines(summary, AnnotationFiles.of(config).annotations))
    table, _ = check_annotations(config, load_examples(config.data, config.task).digest()) or (pd.DataFrame(), None)
    train = load_examples(config.data, config.task).table.query("split == 'train'")
    pairs = training_pairs(METHODS["distill"], train, table, SENTIMENT)
    assert set(pairs["target_kind"]) == {"label"}
    assert len(pairs) == 23
    with pytest.raises(CotdError, match="needs annotations"):
        training_pairs(METHODS["cot_unlabelled"], train, table, SENTIMENT)


@pytest.mark.parametrize(
    ("change", "columns", "message"),
    [
        ({}, COLUMNS | {"label": "sad"}, r"no column 'sad' \(teacher\.imported\.columns\.label\); it has: text, label, .* 'said'"),
        ({}, COLUMNS | {"label": "x", "rationale": "y"}, r"(?s)no column 'x' .*no column 'y'"),
        ({"text": "something else"}, COLUMNS, r"none of its 60 rows has the text of an example of reviews\.csv.*'something else'"),
        ({"said": "42"}, {"label": "said", "rationale": "why"}, r"learn from none of its 60 rows: .*its labels include '42'"),
        ({"why": None}, {"label": "said", "rationale": "why"}, r"learn from none of its 60 rows: .* shorter than three words"),
    ],
)  # fmt: skip
def test_files_that_are_refused(
    beside: Callable[..., StudyConfig], said_by_gpt: pd.DataFrame, change: dict[str, Any], columns: dict[str, Any], message: str
) -> None:
    config = beside(said_by_gpt.assign(**change), columns)
    with pytest.raises(CotdError, match=message):
        annotate(config)
    assert read_annotations(config) is None


def test_files_that_cannot_be_read(beside: Callable[..., StudyConfig], tmp_path: Path) -> None:
    config = beside()
    (tmp_path / "imported.parquet").write_text("no Parquet")
    with pytest.raises(CotdError, match=r"cannot read '.*imported\.parquet'"):
        annotate(config)
    (tmp_path / "imported.parquet").unlink()
    with pytest.raises(CotdError, match=r"teacher\.imported\.source: no file '.*imported\.parquet' \(looked in "):
        annotate(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["teacher.imported.columns.rationale=null", "teacher.held_out_rationales=true"],
            "method 'cot_unlabelled', teacher.held_out_rationales: needs rationales written with the labels. Name their column",
        ),
        (["teacher.imported.columns.label=null"], "rationale belongs to a label: name the column of label, too"),
        (["teacher.imported.columns={}"], "nothing to learn from: name the column of label (and of rationale, if any), or of gold_r"),
        (["teacher.imported.columns.lable=x"], "unknown key 'teacher.imported.columns.lable'. Did you mean 'label'?"),
        (["teacher.imported.source=imported.xlsx"], "not a file that ends in .parquet, .jsonl"),
        (["teacher.strategy=chain_of_thought"], "`imported` and strategy chain_of_thought are mutually exclusive"),
        (["teacher.samples=3"], "each row of an example is a sample"),
        (["teacher={imported: {columns: {gold_rationale: why}}}"], "model is missing: name who wrote the file"),
        (["teacher.imported.source=null", "data.source=a/b"], "teacher.imported.source is missing: data.source 'a/b' is not a file"),
        (["teacher.imported.source=null", "teacher.imported.columns.label=label"], "would be scored on its own labels"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(beside: Callable[..., StudyConfig], overrides: list[str], message: str) -> None:
    with pytest.raises(CotdError, match=re.escape(message)):
        beside(overrides=overrides)


def test_nobody_can_be_asked_again(beside: Callable[..., StudyConfig]) -> None:
    with pytest.raises(CotdError, match="Fix the file"):
        annotate(beside(), retry_errors=True)
