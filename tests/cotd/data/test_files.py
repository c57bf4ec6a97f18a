"""Files of rows, whole or damaged."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.data.config import Columns, DataConfig
from cotd.data.files import NOT_AN_OBJECT, PROBLEM, read_csv, read_json_lines
from cotd.data.sources import load_examples
from cotd.errors import CotdError
from cotd.utils.jsonl import parse_row
from tests.tasks import SENTIMENT

cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.lists(st.tuples(cells.filter(bool), cells), min_size=1, max_size=8), st.data())
def test_bad_csv_rows_change_no_other(rows: list[tuple[str, str]], data: st.DataObject) -> None:
    lines = [io.StringIO(newline="") for _ in rows]
    for line, row in zip(lines, rows, strict=True):
        csv.writer(line).writerow(row)
    text = [line.getvalue() for line in lines]
    bad = data.draw(st.lists(st.integers(0, len(rows)), max_size=3))
    for place in sorted(bad, reverse=True):
        text.insert(place, "one,two,three\r\n")
    frame = pd.concat(read_csv(io.StringIO("text,label\r\n" + "".join(text), newline="")), ignore_index=True)
    problem = frame[PROBLEM] if bad else pd.Series([None] * len(rows))
    assert frame.loc[problem.isna(), ["text", "label"]].values.tolist() == [[t, label or None] for t, label in rows]
    assert problem.dropna().tolist() == ["3 cells, but the header has 2"] * len(bad)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.text() | st.integers()) | st.text(), max_size=8))
def test_bad_json_lines_change_no_other(drawn: list[dict[str, Any] | str]) -> None:
    good = [row for row in drawn if isinstance(row, dict)]
    lines = [line.replace("\n", " ") if isinstance(line, str) else json.dumps(line) for line in drawn]
    try:
        frame = pd.concat(read_json_lines(f"{line}\n" for line in lines), ignore_index=True)
    except ValueError:
        assert not any(parse_row(line) for line in lines)
        return
    found = frame[frame[PROBLEM].isna()] if PROBLEM in frame else frame
    plain = [{k: v for k, v in row.items() if k in "abc" and v == v} for row in found.to_dict("records")]
    assert [row for row in plain if row] == [row for row in good if row]


def test_bad_rows_are_quarantined_and_the_others_read(tmp_path: Path, example_rows: pd.DataFrame) -> None:
    example_rows.to_csv(tmp_path / "mine.csv", index=False)
    with (tmp_path / "mine.csv").open("ab") as file:
        file.write(b"So good, so long,positive,train\nOnly a text\n")
        file.write(b"Caf\xe9 society,positive,train\n" + b"x" * 200_000 + b",1,test\n")
    lines = [json.dumps(row) for row in example_rows.to_dict("records")]
    lines[3:3] = [
        '{"text": "cut of',
        "[1, 2]",
        "[" * 100_000,
        '{"text": 5, "split": "train"}',
        '{"label": "1", "split": "test"}',
    ]
    (tmp_path / "mine.jsonl").write_bytes(
        "\n".join(lines).encode() + b'\n{"text": "Caf\xe9 society", "label": 1, "split": "train"}'
    )
    columns = Columns(split="split")
    from_csv = load_examples(DataConfig(source=str(tmp_path / "mine.csv"), columns=columns), SENTIMENT)
    from_json = load_examples(DataConfig(source=str(tmp_path / "mine.jsonl"), columns=columns), SENTIMENT)
    assert from_csv.quarantined.frame()[["text", "reason"]].values.tolist() == [
        ["So good, so long,positive,train", "4 cells, but the header has 3"],
        ["Only a text", "1 cells, but the header has 3"],
    ]
    bad = from_json.quarantined.frame()
    assert bad["reason"].tolist() == [NOT_AN_OBJECT] * 3 + ["the text is a int, not a string", "no text"]
    assert bad["text"].str[:15].tolist() == ['{"text": "cut o', "[1, 2]", "[" * 15, "", ""]
    assert set(from_csv.table["text"]) == {*example_rows["text"], "Caf\ufffd society", "x" * 200_000}
    assert set(from_json.table["text"]) == {*example_rows["text"], "Caf\ufffd society"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nCafé\nDéjà vu\nnaïve\n".encode("latin-1"), "3 of its 4 lines are not UTF-8, first line 2. Save it"),
        ("text\nfine\n".encode("utf-16"), "it is in UTF-16. Save it as UTF-8"),
        (b'text,label\nfine,1\n"never closed,1\nfine,1\n', "a quote in line 3 is never closed"),
    ],
)
def test_files_that_are_bad_as_a_whole(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.csv").write_bytes(content)
    with pytest.raises(CotdError, match=message):
        load_examples(DataConfig(source=str(tmp_path / "mine.csv")), SENTIMENT)


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", "{not json"), ("a.parquet", "PAR0"), ("a.csv", "")])
def test_broken_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CotdError, match=f"cannot read '.*{name}'"):
        load_examples(DataConfig(source=str(tmp_path / name)), SENTIMENT)
