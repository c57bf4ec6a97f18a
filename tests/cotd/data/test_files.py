"""Files of rows, whole or damaged."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.data.config import Columns, DataConfig
from cotd.data.files import LINE, NOT_AN_OBJECT, PROBLEM, json_blocks, read_csv, read_file
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
        frame = pd.concat(json_blocks((parse_row(line), line) for line in lines if line.strip()), ignore_index=True)
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
        ("text\nfine\n".encode("utf-16-le"), "it is in UTF-16, or not a text. Save it as UTF-8"),
        (gzip.compress(b"text\nfine\n", mtime=0), "it is compressed by gzip: its name must end in .gz"),
        (bz2.compress(b"text\nfine\n"), "it is compressed by bzip2: its name must end in .bz2"),
        (pa.compress(b"text\nfine\n", "zstd", asbytes=True), "it is compressed by zstd: its name must end in .zst"),
        (b"PAR1\x15\x04\n", "it is a Parquet file: its name must end in .parquet"),
        (b"PK\x03\x04\x14\x00\n", "it is a zip archive or a spreadsheet"),
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


def read(text: str, **options: Any) -> pd.DataFrame:
    return pd.concat(read_csv(io.StringIO(text, newline=""), **options), ignore_index=True)


WHOLE_ROWS = [f"Cup number {i} keeps tea warm,{'good' if i % 2 else 'bad'}\n" for i in range(40)]


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        (['"Opens with a quote,good\n'], ['"Opens with a quote']),
        (['"Opens with a quote,good\n', "It holds,bad\n", '"Opens with another,good\n'], ['"Opens with a quote', "It holds"]),
        (
            ['"Opens with a quote,good\n', "It holds,bad\n", 'A pot of 5",good\n'],
            ['"Opens with a quote', "It holds", 'A pot of 5"'],
        ),
        (['"A ""doubled"" one,\nand a second line",good\n'], ['A "doubled" one,\nand a second line']),
        (['"Escaped \\"by\\" MySQL, they say",good\n'], ['Escaped "by" MySQL, they say']),
        (['"Two words" and more,good\n'], ['"Two words" and more']),
    ],
)
def test_a_quote_out_of_place_costs_no_other_row(rows: list[str], texts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    frame = read("text,label\n" + "".join([*WHOLE_ROWS, *rows, *WHOLE_ROWS]), name="pots.csv")
    assert PROBLEM not in frame
    assert len(frame) >= 80 + len(texts)
    assert frame["text"].tolist()[40 : 40 + len(texts)] == texts
    assert set(frame["label"]) == {"good", "bad"}
    well_formed = texts[0].startswith("A ")
    assert ("pots.csv has" in capsys.readouterr().err) != well_formed


def test_a_quote_that_is_never_closed_in_a_long_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotd.data.delimited.MAX_ROW_LINES", 50)
    frame = read("text\n" + '"Starts\n' + "A plain line\n" * 200)
    assert frame["text"].tolist() == ['"Starts', *["A plain line"] * 200]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_that_gives_whole_rows(delimiter: str, tmp_path: Path, example_rows: pd.DataFrame) -> None:
    rows = example_rows.assign(text=example_rows["text"] + ", or so; they say | or not")
    for name in ("mine.csv", "mine.tsv"):
        rows.to_csv(tmp_path / name, index=False, sep=delimiter)
        table = load_examples(DataConfig(source=str(tmp_path / name), columns=Columns(split="split")), SENTIMENT).table
        assert set(table["text"]) == set(rows["text"])


def test_one_column_may_have_any_delimiter_in_it() -> None:
    assert read("text\nOne; two\nThree | four\n")["text"].tolist() == ["One; two", "Three | four"]


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl", "a.jsonl.gz", "a.csv.bz2", "a.tsv.gz", "a.csv.zst", "a.json.zst", "a.parquet"]
)
def test_a_file_is_read_whatever_its_form(name: str, tmp_path: Path, example_rows: pd.DataFrame) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        example_rows.to_parquet(path)
    elif ".csv" in name or ".tsv" in name:
        content = example_rows.to_csv(index=False, sep="\t" if ".tsv" in name else ",")
    else:
        content = example_rows.to_json(orient="records", lines=".jsonl" in name, force_ascii=False)
    if not name.endswith("parquet"):
        codec = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}.get(path.suffix[1:])
        with pa.output_stream(str(path), compression=codec) as file:
            file.write(content.encode())
    table = load_examples(DataConfig(source=str(path), columns=Columns(split="split")), SENTIMENT).table
    assert set(table[["text", "label", "split"]].itertuples(index=False, name=None)) == set(
        example_rows.itertuples(index=False, name=None)
    )


def test_json_that_is_no_list_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "fine"}, 5, ["a"]]')
    (frame,) = read_file(str(path))
    assert frame[LINE].dropna().tolist() == ["5", '["a"]']
    path.write_text('{\n"text": "fine"\n"cut off')
    with pytest.raises(CotdError, match=r"cannot read .*none of its 3 lines is a JSON object"):
        list(read_file(str(path)))
    path.write_text('{"train": [{"text": "fine"}], "test": [{"text": "dull"}]}')
    with pytest.raises(CotdError, match=r"an object with several lists: train, test. Write each to a file of its own"):
        list(read_file(str(path)))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("wrapped", [True, False])
def test_json_of_one_value_is_read_however_it_is_written(
    tmp_path: Path, indent: int | None, wrapped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "fine"}, {"text": "dull"}]
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, "data": rows} if wrapped else rows, indent=indent))
    (frame,) = read_file(str(tmp_path / "a.json"))
    assert frame["text"].tolist() == ["fine", "dull"]
    assert ("the rows are those of 'data'" in capsys.readouterr().err) == wrapped


def test_json_lines_in_a_json_file_may_begin_with_a_bad_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "cut\n{"text": "fine"}\n{"text": "dull"}\n')
    (frame,) = read_file(str(tmp_path / "a.json"))
    assert frame["text"].tolist()[1:] == ["fine", "dull"]
    assert frame[LINE].tolist()[0] == '{"text": "cut'


def test_what_spreadsheets_write_around_rows(capsys: pytest.CaptureFixture[str]) -> None:
    frame = read("sep=^\ntext^label\nA cup, a pot; fine^good^^\nDull^bad^\nToo^many^cells\n")
    assert frame["text"].tolist()[:2] == ["A cup, a pot; fine", "Dull"]
    assert frame[PROBLEM].tolist() == [None, None, "3 cells, but the header has 2"]
    read("text,label,label\nfine,good,bad\n", name="twice.csv")
    assert "twice.csv has several columns 'label', of which the first is read" in capsys.readouterr().err


def test_what_pandas_wrote_as_its_index_is_a_column(tmp_path: Path, example_rows: pd.DataFrame) -> None:
    example_rows.set_index("text").to_parquet(tmp_path / "a.parquet")
    (frame,) = read_file(str(tmp_path / "a.parquet"))
    assert frame["text"].tolist() == example_rows["text"].tolist()


def test_folders_and_patterns_are_read_file_by_file(tmp_path: Path, example_rows: pd.DataFrame) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    plain = example_rows.drop(columns="split")
    plain.iloc[:20].to_csv(folder / "part-0.csv", index=False)
    plain.iloc[20:].to_json(folder / "part-1.jsonl", orient="records", lines=True)
    (folder / "notes.txt").write_text("not a table")
    texts = [
        set(load_examples(DataConfig(source=str(source)), SENTIMENT).table["text"]) for source in (folder, folder / "part-*.*")
    ]
    assert texts == [set(plain["text"])] * 2
    with pytest.raises(CotdError, match="no file matches"):
        load_examples(DataConfig(source=str(folder / "piece-*.csv")), SENTIMENT)


def test_files_named_after_splits_are_splits(tmp_path: Path, example_rows: pd.DataFrame) -> None:
    for split, rows in example_rows.groupby("split"):
        name = {"train": "train-00000-of-00001", "validation": "dev", "test": "Test"}[str(split)]
        rows[["text", "label"]].to_csv(tmp_path / f"{name}.csv", index=False)
    table = load_examples(DataConfig(source=str(tmp_path)), SENTIMENT).table
    assert table["split"].value_counts().to_dict() == {"train": 24, "validation": 24, "test": 12}
    (tmp_path / "more.csv").write_text("text,label\nfine,1\n")
    with pytest.raises(CotdError, match=r"files named after splits .* and others \(more.csv\)"):
        load_examples(DataConfig(source=str(tmp_path)), SENTIMENT)


def test_a_url_is_read_as_a_file_is(tmp_path: Path, example_rows: pd.DataFrame) -> None:
    with fsspec.open("memory://shop/mine.csv", "w") as file:
        example_rows.to_csv(file, index=False)
    data = DataConfig(source="memory://shop/mine.csv", columns=Columns(split="split"))
    assert set(load_examples(data, SENTIMENT).table["text"]) == set(example_rows["text"])
    with pytest.raises(CotdError, match=r"memory://shop/theirs.csv"):
        load_examples(DataConfig(source="memory://shop/theirs.csv"), SENTIMENT)
    with pytest.raises(CotdError, match=r"nosuch://a/b.csv.*nosuch"):
        load_examples(DataConfig(source="nosuch://a/b.csv"), SENTIMENT)
    with pytest.raises(CotdError, match=r"its name must end in .parquet"):
        load_examples(DataConfig(source="memory://shop/mine"), SENTIMENT)
    with pytest.raises(ValueError, match="a URL with a password"):
        DataConfig(source="https://me:secret@example.org/a.csv")
