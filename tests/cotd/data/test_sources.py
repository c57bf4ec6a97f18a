"""Sources: whatever the format, the same rows give the same examples."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cotd.data import files
from cotd.data.config import Columns, DataConfig
from cotd.data.examples import PROTECTION, Examples
from cotd.data.rows import example_id
from cotd.data.sources import class_names, load_examples, noun
from cotd.errors import CotdError
from tests.tasks import SENTIMENT

WHOLE = pa.schema({"text": pa.string(), "label": pa.string(), "movie": pa.int64(), "extra": pa.int64()})


def test_embedded_examples_leak_neither_text_nor_movie(movie_examples: Examples, rotten_tomatoes: Path) -> None:
    examples = movie_examples.table
    assert len(examples) > 12_000
    assert examples["text"].str.casefold().is_unique

    raw = pd.read_parquet(rotten_tomatoes / "reviews.parquet")
    raw["id"] = [example_id(t) for t in raw["text"]]
    rows = raw.merge(examples[["id", "split"]], on="id", validate="many_to_one")
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
    examples = load_examples(data, SENTIMENT)
    assert [len(examples.split(s)) for s in ("train", "validation", "test")] == [1000, 300, 1000]
    assert examples.table.groupby("split")["label"].agg(lambda s: (s == "positive").mean()).between(0.4, 0.65).all()
    assert noun(data, SENTIMENT) == "movie review"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_local_files_give_the_same_examples(tmp_path: Path, example_rows: pd.DataFrame, suffix: str) -> None:
    awkward = ['He said "no", twice,\nand left. {x}', "NA", "007", "Ünïcode 🎬 — fine"]
    extra = pd.DataFrame([(t, "1", "train") for t in awkward], columns=["text", "label", "split"])
    frame = pd.concat([example_rows, extra]).rename(columns={"text": "body", "label": "stars", "split": "part"})
    path = tmp_path / f"examples.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_parquet(path)
    columns = Columns(text="body", label="stars", split="part")
    examples = load_examples(DataConfig(source=str(path), columns=columns), SENTIMENT)
    found = set(examples.table[["text", "label", "split"]].itertuples(index=False, name=None))
    expected = set(example_rows.itertuples(index=False, name=None))
    assert found == expected | {(" ".join(t.split()), "positive", "train") for t in awkward}
    assert not len(examples.quarantined)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_reading_in_blocks_changes_nothing(
    tmp_path: Path, example_rows: pd.DataFrame, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if a column lacks a value late in the file, for which pandas would take its integers for floats."""
    frame = example_rows.drop(columns="split").assign(movie=[i % 7 for i in range(59)] + [None], extra=1)
    path = tmp_path / f"examples.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({k: v for k, v in r.items() if v == v}) + "\n" for r in frame.to_dict("records")))
    else:
        pq.write_table(pa.table({c: pa.array(frame[c], from_pandas=True) for c in frame}).cast(WHOLE), path, row_group_size=7)
    data = DataConfig(source=str(path), columns=Columns(group="movie"), test_share=0.3, validation_share=0.3)
    whole = load_examples(data, SENTIMENT)
    for size in (1, 7):
        monkeypatch.setattr(files, "BLOCK", size)
        again = load_examples(data, SENTIMENT)
        pd.testing.assert_frame_equal(again.table, whole.table)
        assert again.digest() == whole.digest()


def test_a_column_that_few_lines_have_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK", 2)
    rows = [{"text": f"text {i}"} | ({"label": "pos"} if i > 50 else {}) for i in range(99)]
    rows[70]["movie"] = "a"
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(source=str(tmp_path / "mine.jsonl"), columns=Columns(group="movie"))
    assert load_examples(data, SENTIMENT).table["label"].value_counts().to_dict() == {"positive": 48}
    with pytest.raises(CotdError, match=r"no column 'film' .*it has: text, label, movie\."):
        load_examples(data.model_copy(update={"columns": Columns(group="film")}), SENTIMENT)


def test_a_moved_file_keeps_its_ids(tmp_path: Path, example_rows: pd.DataFrame) -> None:
    ids = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        example_rows.to_csv(tmp_path / folder / "mine.csv", index=False)
        data = DataConfig(source=str(tmp_path / folder / "mine.csv"), columns=Columns(split="split"))
        ids.append(load_examples(data, SENTIMENT).table["id"].to_list())
    assert ids[0] == ids[1]


def test_a_file_for_each_split(tmp_path: Path, example_rows: pd.DataFrame) -> None:
    sources = {}
    for split, rows in example_rows.groupby("split"):
        sources[split] = str(tmp_path / f"{split}.csv")
        rows[["text", "label"]].to_csv(sources[split], index=False)
    examples = load_examples(DataConfig(source=sources), SENTIMENT)
    assert examples.table["split"].value_counts().to_dict() == {"train": 24, "validation": 24, "test": 12}


def test_a_group_column_keeps_groups_together(tmp_path: Path) -> None:
    rows = pd.DataFrame({"text": [f"text {i}" for i in range(400)], "label": 1, "product": [f"p{i % 40}" for i in range(400)]})
    rows.to_csv(tmp_path / "mine.csv", index=False)
    table = load_examples(DataConfig(source=str(tmp_path / "mine.csv"), columns=Columns(group="product")), SENTIMENT).table
    product = table["text"].str.split().str[1].astype(int) % 40
    assert table.groupby(product)["split"].nunique().max() == 1


def test_unlabelled_rows_are_examples_too(tmp_path: Path) -> None:
    pd.DataFrame({"text": [f"text {i}" for i in range(100)]}).to_csv(tmp_path / "mine.csv", index=False)
    examples = load_examples(DataConfig(source=str(tmp_path / "mine.csv")), SENTIMENT)
    assert len(examples.table) == 100
    assert examples.table["label"].isna().all()


@pytest.mark.parametrize("header", [" label", "Label", "LABEL ", "labels", "lable"])
def test_a_label_column_that_is_nearly_there_is_named(tmp_path: Path, header: str) -> None:
    pd.DataFrame({"text": ["fine"], header: [1]}).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(
        CotdError, match=r"no column 'label' .*Did you mean '(?i:.*la.*)'\? If it has no labels: data.columns.label=null"
    ):
        load_examples(DataConfig(source=str(tmp_path / "mine.csv")), SENTIMENT)
    data = DataConfig(source=str(tmp_path / "mine.csv"), columns=Columns(label=None))
    with pytest.raises(CotdError, match="no example in split"):
        load_examples(data, SENTIMENT)


def test_a_source_names_its_splits_as_data_sets_do(tmp_path: Path, example_rows: pd.DataFrame) -> None:
    files = {}
    for name, split in {"train": "train", "dev": "validation", "Test": "test"}.items():
        files[name] = str(tmp_path / f"{name}.csv")
        example_rows[example_rows["split"] == split].drop(columns="split").to_csv(files[name], index=False)
    examples = load_examples(DataConfig(source=files), SENTIMENT)
    assert examples.table["split"].value_counts().to_dict() == {"train": 24, "validation": 24, "test": 12}
    with pytest.raises(ValueError, match="two of val, dev are names of one split"):
        DataConfig(source={"val": "a.csv", "dev": "b.csv"})


def test_other_labels_are_named_with_the_key_that_sets_them(tmp_path: Path) -> None:
    names = ["agrees", "differs", "unrelated"]
    pd.DataFrame({"text": [f"text {i}" for i in range(60)], "label": names * 20}).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(CotdError, match=r"agrees.*task\.labels") as caught:
        load_examples(DataConfig(source=str(tmp_path / "mine.csv")), SENTIMENT)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["pos", "neg"], ["pos", "neg"]),  # the numbers would be read the other way round
        (["1", "2"], None),
        (["0", "1"], ["0", "1"]),
        (None, None),
        (["kind", "unkind"], "the classes of column 'label' are kind, unkind"),
        (["1", "2", "3"], "the classes"),
        (["1 star", "2 stars", "3 stars", "4 stars", "5 stars"], "task.labels"),
    ],
)
def test_class_names_are_never_guessed(names: list[str] | None, read: list[str] | str | None) -> None:
    if isinstance(read, str):
        with pytest.raises(CotdError, match=read):
            class_names(names, SENTIMENT, "hub", "label")
    else:
        assert class_names(names, SENTIMENT, "hub", "label") == read


def test_missing_columns_are_named_all_at_once(tmp_path: Path) -> None:
    pd.DataFrame({"body": ["fine"], "stars": [1]}).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(CotdError) as caught:
        load_examples(DataConfig(source=str(tmp_path / "mine.csv"), columns=Columns(text="bodi", label="star")), SENTIMENT)
    first, second = caught.value.problems
    assert "no column 'bodi' (data.columns.text)" in first
    assert "it has: body, stars." in first
    assert "Did you mean 'body'?" in first
    assert "no column 'star' (data.columns.label)" in second


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.csv", "no file 'nowhere.csv' .looked in"),
        ("rotten-tomatoes", "is not embedded:NAME.*Did you mean 'embedded:rotten-tomatoes'"),
        ("embedded:rotten-tomatos", "Did you mean 'rotten-tomatoes'"),
        ("embedded:t5-mini", "is a student, not examples. Embedded examples: embedded:rotten-tomatoes"),
    ],
)
def test_sources_that_do_not_exist(source: str, message: str) -> None:
    with pytest.raises(CotdError, match=message):
        load_examples(DataConfig(source=source), SENTIMENT)


def test_an_unknown_split_name_is_refused(tmp_path: Path, example_rows: pd.DataFrame) -> None:
    example_rows.assign(split="holdout").to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(CotdError, match="split 'holdout' is not train, validation or test"):
        load_examples(DataConfig(source=str(tmp_path / "mine.csv"), columns=Columns(split="split")), SENTIMENT)


def test_too_few_rows_for_three_splits(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["fine"], "label": [1]}).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(CotdError, match=r"no example in split .*Give more rows"):
        load_examples(DataConfig(source=str(tmp_path / "mine.csv")), SENTIMENT)


def test_unlabelled_texts_join_the_training_split_alone(tmp_path: Path, example_rows: pd.DataFrame) -> None:
    """Also a source's own training examples beyond train_rows: their gold is hidden."""
    example_rows.to_csv(tmp_path / "examples.csv", index=False)
    held_out, trained = (
        list(example_rows.loc[example_rows["split"].isin(s), "text"]) for s in (["validation", "test"], ["train"])
    )
    more = ["A new one.", "a NEW one.", "Another.", "", trained[0].upper(), held_out[0], held_out[-1]]
    pd.DataFrame({"text": more, "label": "nonsense"}).to_csv(tmp_path / "more.csv", index=False)
    data = DataConfig(
        source=str(tmp_path / "examples.csv"), columns=Columns(split="split"), unlabelled=str(tmp_path / "more.csv")
    )
    plain, joined = (load_examples(d, SENTIMENT) for d in (data.model_copy(update={"unlabelled": None}), data))
    train = joined.split("train")
    assert set(train.loc[train["label"].isna(), "text"].str.casefold()) == {"a new one.", "another."}
    assert [len(joined.split(s)) - len(plain.split(s)) for s in ("train", "validation", "test")] == [2, 0, 0]
    assert {k: v for k, v in joined.counts.items() if k.startswith("unlabelled")} == {
        "unlabelled": 2, "unlabelled_held_out": 2, "unlabelled_repeats": 2,
    }  # fmt: skip
    assert joined.counts["quarantined"] == 1, "the empty one"
    assert joined.digest() != plain.digest()
    gold = train[train["label"].notna()].reset_index(drop=True)
    pd.testing.assert_frame_equal(gold, plain.split("train"))

    own = data.model_copy(update={"unlabelled": data.source, "train_rows": 5, "test_rows": 3})
    train = load_examples(own, SENTIMENT).split("train")
    assert set(train["text"]) == set(trained), "nothing of validation and test, also of what test_rows leaves out"
    assert set(train.loc[train["label"].notna(), "id"]) == set(plain.split("train")["id"].head(5))
    limited = load_examples(own.model_copy(update={"unlabelled_rows": 4}), SENTIMENT)
    assert limited.counts["kept_train"] == 9
    with pytest.raises(CotdError, match=r"data\.unlabelled 'nowhere' is not embedded:NAME"):
        load_examples(data.model_copy(update={"unlabelled": "nowhere"}), SENTIMENT)


def test_unlabelled_texts_of_a_held_out_group_are_left_out(rotten_tomatoes: Path) -> None:
    data = DataConfig(source="embedded:rotten-tomatoes", unlabelled="embedded:rotten-tomatoes", train_rows=1000)
    examples = load_examples(data, SENTIMENT).table
    by_group = examples.dropna(subset="group").groupby("group")["split"].nunique()
    assert (by_group == 1).all()
    train = examples[examples["split"] == "train"]
    assert (train["label"].notna().sum(), len(train)) == (1000, len(train))
    assert len(train) > 8000


def test_what_is_odd_about_a_source_is_said(
    tmp_path: Path, example_rows: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = example_rows.replace({"split": {"train": "training", "validation": "Eval", "test": "testing"}})
    rows.rename(columns={"split": "part"}).assign(text=rows["text"].where(rows.index != 3, "nan")).to_csv(tmp_path / "a.csv")
    load_examples(DataConfig(source=str(tmp_path / "a.csv")), SENTIMENT)
    said = capsys.readouterr().err
    assert "a.csv has a column 'part' that names splits, and is not read. To use it: data.columns.split=part" in said
    assert "a.csv: warning: 1 rows have 'nan', 'None' or the like for a text, as if it were missing" in said
    table = load_examples(DataConfig(source=str(tmp_path / "a.csv"), columns=Columns(split="part")), SENTIMENT).table
    assert table["split"].value_counts().to_dict() == {"train": 24, "validation": 24, "test": 12}
    assert "is not read" not in capsys.readouterr().err
    rows.rename(columns={"label": "verdict"}).to_csv(tmp_path / "b.csv")
    load_examples(DataConfig(source=str(tmp_path / "b.csv"), columns=Columns(split="split")), SENTIMENT)
    said = capsys.readouterr().err
    assert "b.csv has no column 'label', so that no example has a gold label; not read: " in said
    assert "verdict. If one of them has the labels: data.columns.label=NAME" in said
