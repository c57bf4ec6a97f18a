from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.data import files as source_files
from cotd.data.config import Columns, DataConfig
from cotd.data.examples import PROTECTION, review_id
from cotd.data.files import NO_OBJECT, PROBLEM, parse_line, read_csv, read_json_lines
from cotd.data.sources import embedded_reviews, load_examples, noun
from cotd.errors import CotdError

WHOLE = pa.schema({"text": pa.string(), "label": pa.string(), "movie": pa.int64(), "extra": pa.int64()})


def test_embedded_reviews_leak_neither_text_nor_movie(rotten_tomatoes: Path) -> None:
    reviews = embedded_reviews("rotten-tomatoes").table
    assert len(reviews) > 12_000
    assert reviews["text"].str.casefold().is_unique

    raw = pd.read_parquet(rotten_tomatoes / "reviews.parquet")
    raw["id"] = [review_id("embedded:rotten-tomatoes", t) for t in raw["text"]]
    rows = raw.merge(reviews[["id", "split"]], on="id", validate="many_to_one")
    assert len(rows) == len(raw)
    shared = rows.groupby("id")["group"].transform("nunique") > 1
    home = rows[~shared].groupby("group")["split"].agg(["nunique", "first"])
    assert (home["nunique"] == 1).all()
    # Two critics wrote "An absorbing documentary." of two movies: it counts to the movie that protects the test.
    assert shared.any()
    for _, copies in rows[shared].groupby("id"):
        homes = copies["group"].map(home["first"]).dropna()  # a movie with no sentence of its own has no home
        assert homes.empty or PROTECTION[copies["split"].iloc[0]] >= homes.map(PROTECTION).max()


def test_a_demo_sized_part_is_balanced(rotten_tomatoes: Path) -> None:
    data = DataConfig(source="embedded:rotten-tomatoes", train_rows=1000, validation_rows=300, test_rows=1000)
    reviews = load_examples(data)
    assert [len(reviews.split(s)) for s in ("train", "validation", "test")] == [1000, 300, 1000]
    assert reviews.table.groupby("split")["label"].agg(lambda s: (s == "positive").mean()).between(0.4, 0.65).all()
    assert noun(data) == "movie review"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_local_files_give_the_same_reviews(tmp_path: Path, review_rows: pd.DataFrame, suffix: str) -> None:
    awkward = ['He said "no", twice,\nand left. {x}', "NA", "007", "Ünïcode 🎬 — fine"]
    extra = pd.DataFrame([(t, "1", "train") for t in awkward], columns=["text", "label", "split"])
    frame = pd.concat([review_rows, extra]).rename(columns={"text": "body", "label": "stars", "split": "part"})
    path = tmp_path / f"reviews.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_parquet(path)
    columns = Columns(text="body", label="stars", split="part")
    reviews = load_examples(DataConfig(source=str(path), columns=columns))
    found = set(reviews.table[["text", "label", "split"]].itertuples(index=False, name=None))
    expected = set(review_rows.itertuples(index=False, name=None))
    assert found == expected | {(" ".join(t.split()), "positive", "train") for t in awkward}
    assert reviews.quarantine.empty


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_reading_in_blocks_changes_nothing(
    tmp_path: Path, review_rows: pd.DataFrame, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where a column lacks a value, so that pandas would take its whole numbers for fractions, late in the file."""
    frame = review_rows.drop(columns="split").assign(movie=[i % 7 for i in range(59)] + [None], extra=1)
    path = tmp_path / f"reviews.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({k: v for k, v in r.items() if v == v}) + "\n" for r in frame.to_dict("records")))
    else:
        pq.write_table(pa.table({c: pa.array(frame[c], from_pandas=True) for c in frame}).cast(WHOLE), path, row_group_size=7)
    data = DataConfig(source=str(path), columns=Columns(group="movie"), test_share=0.3, validation_share=0.3)
    whole = load_examples(data)
    for size in (1, 7):
        monkeypatch.setattr(source_files, "BLOCK", size)
        again = load_examples(data)
        pd.testing.assert_frame_equal(again.table, whole.table)
        assert again.digest() == whole.digest()


def test_a_column_that_few_lines_have_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "BLOCK", 2)
    rows = [
        {"text": f"text {i}"} | ({"label": "pos"} if i > 50 else {}) | ({"movie": "a"} if i == 70 else {}) for i in range(99)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(source=str(tmp_path / "mine.jsonl"), columns=Columns(group="movie"))
    assert load_examples(data).table["label"].value_counts().to_dict() == {"positive": 48}
    with pytest.raises(CotdError, match=r"no column 'film' .*it has: text, label, movie\."):
        load_examples(data.model_copy(update={"columns": Columns(group="film")}))


def test_a_moved_file_keeps_its_ids(tmp_path: Path, review_rows: pd.DataFrame) -> None:
    ids = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        review_rows.to_csv(tmp_path / folder / "mine.csv", index=False)
        data = DataConfig(source=str(tmp_path / folder / "mine.csv"), columns=Columns(split="split"))
        ids.append(load_examples(data).table["id"].to_list())
    assert ids[0] == ids[1]


def test_a_file_for_each_split(tmp_path: Path, review_rows: pd.DataFrame) -> None:
    sources = {}
    for split, rows in review_rows.groupby("split"):
        sources[split] = str(tmp_path / f"{split}.csv")
        rows[["text", "label"]].to_csv(sources[split], index=False)
    reviews = load_examples(DataConfig(source=sources))
    assert reviews.table["split"].value_counts().to_dict() == {"train": 24, "validation": 24, "test": 12}


def test_a_group_column_keeps_groups_together(tmp_path: Path) -> None:
    rows = pd.DataFrame({"text": [f"text {i}" for i in range(400)], "label": 1, "product": [f"p{i % 40}" for i in range(400)]})
    rows.to_csv(tmp_path / "mine.csv", index=False)
    table = load_examples(DataConfig(source=str(tmp_path / "mine.csv"), columns=Columns(group="product"))).table
    product = table["text"].str.split().str[1].astype(int) % 40
    assert table.groupby(product)["split"].nunique().max() == 1


def test_unlabelled_rows_are_reviews_too(tmp_path: Path) -> None:
    pd.DataFrame({"text": [f"text {i}" for i in range(100)]}).to_csv(tmp_path / "mine.csv", index=False)
    reviews = load_examples(DataConfig(source=str(tmp_path / "mine.csv")))
    assert len(reviews.table) == 100
    assert reviews.table["label"].isna().all()


def test_missing_columns_are_named_all_at_once(tmp_path: Path) -> None:
    pd.DataFrame({"body": ["fine"], "stars": [1]}).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(CotdError) as caught:
        load_examples(DataConfig(source=str(tmp_path / "mine.csv"), columns=Columns(text="bodi", label="star")))
    first, second = caught.value.problems
    assert "no column 'bodi' (data.columns.text)" in first
    assert "it has: body, stars." in first
    assert "Did you mean 'body'?" in first
    assert "no column 'star' (data.columns.label)" in second


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.csv", "no file 'nowhere.csv' .looked in"),
        ("rotten-tomatoes", "neither embedded:NAME.*Did you mean 'embedded:rotten-tomatoes'"),
        ("embedded:rotten-tomatos", "Did you mean 'rotten-tomatoes'"),
        ("embedded:t5-mini", "is a student, not reviews. Embedded reviews: embedded:rotten-tomatoes"),
    ],
)
def test_sources_that_are_none(source: str, message: str) -> None:
    with pytest.raises(CotdError, match=message):
        load_examples(DataConfig(source=source))


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", "{not json"), ("a.parquet", "PAR0"), ("a.csv", "")])
def test_broken_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CotdError, match=f"cannot read '.*{name}'"):
        load_examples(DataConfig(source=str(tmp_path / name)))


# --- files with bad rows --------------------------------------------------------------------------------------------

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
    assert problem.dropna().tolist() == ["3 cells, where the header has 2"] * len(bad)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.text() | st.integers()) | st.text(), max_size=8))
def test_bad_json_lines_change_no_other(drawn: list[dict[str, Any] | str]) -> None:
    good = [row for row in drawn if isinstance(row, dict)]
    lines = [line.replace("\n", " ") if isinstance(line, str) else json.dumps(line) for line in drawn]
    try:
        frame = pd.concat(read_json_lines(f"{line}\n" for line in lines), ignore_index=True)
    except ValueError:
        assert not any(parse_line(line) for line in lines)
        return
    found = frame[frame[PROBLEM].isna()] if PROBLEM in frame else frame
    plain = [{k: v for k, v in row.items() if k in "abc" and v == v} for row in found.to_dict("records")]
    assert [row for row in plain if row] == [row for row in good if row]


def test_a_bad_row_is_set_aside_and_the_file_is_read(tmp_path: Path, review_rows: pd.DataFrame) -> None:
    review_rows.to_csv(tmp_path / "mine.csv", index=False)
    with (tmp_path / "mine.csv").open("ab") as file:
        file.write(
            b"So good, so long,positive,train\nOnly a text\nCaf\xe9 society,positive,train\n" + b"x" * 200_000 + b",1,test\n"
        )
    lines = [json.dumps(row) for row in review_rows.to_dict("records")]
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
    from_csv = load_examples(DataConfig(source=str(tmp_path / "mine.csv"), columns=columns))
    from_json = load_examples(DataConfig(source=str(tmp_path / "mine.jsonl"), columns=columns))
    assert from_csv.quarantine[["text", "reason"]].values.tolist() == [
        ["So good, so long,positive,train", "4 cells, where the header has 3"],
        ["Only a text", "1 cells, where the header has 3"],
    ]
    assert from_json.quarantine["reason"].tolist() == [NO_OBJECT] * 3 + ["the text is a int, not a string", "no text"]
    assert from_json.quarantine["text"].str[:15].tolist() == ['{"text": "cut o', "[1, 2]", "[" * 15, "", ""]
    assert set(from_csv.table["text"]) == {*review_rows["text"], "Caf\ufffd society", "x" * 200_000}
    assert set(from_json.table["text"]) == {*review_rows["text"], "Caf\ufffd society"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nCafé\nDéjà vu\nnaïve\n".encode("latin-1"), "3 of its 4 lines are not UTF-8, the first of them line 2. Save it"),
        ("text\nfine\n".encode("utf-16"), "it is in UTF-16. Save it as UTF-8"),
        (b'text,label\nfine,1\n"never closed,1\nfine,1\n', "a quote in line 3 is never closed"),
    ],
)
def test_files_that_are_bad_as_a_whole(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.csv").write_bytes(content)
    with pytest.raises(CotdError, match=message):
        load_examples(DataConfig(source=str(tmp_path / "mine.csv")))


def test_an_unknown_split_name_is_refused(tmp_path: Path, review_rows: pd.DataFrame) -> None:
    review_rows.assign(split="holdout").to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(CotdError, match="split 'holdout' is not train, validation or test"):
        load_examples(DataConfig(source=str(tmp_path / "mine.csv"), columns=Columns(split="split")))


def test_too_few_rows_for_three_splits(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["fine"], "label": [1]}).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(CotdError, match=r"no review in split .*Give more rows"):
        load_examples(DataConfig(source=str(tmp_path / "mine.csv")))
