"""Examples: whatever the rows, equal texts are one example, and nothing leaks between splits."""

from __future__ import annotations

import itertools
import json
import random
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from cotd.data import spill
from cotd.data import table as table_module
from cotd.data.cleaning import clean_text
from cotd.data.examples import CONTRADICTORY, DIVIDED_GROUP, PROTECTION, Examples, build_examples, limit_rows, select_fraction
from cotd.data.rows import example_id
from cotd.data.table import SPLITS
from cotd.errors import CotdError
from cotd.tasks.classification import Classification
from cotd.tasks.multiple_choice import MultipleChoice
from tests.tasks import SENTIMENT

# A few texts in many spellings, so that repeats are common.
SPELLINGS = ["{}", " {}  ", "{}<br />", "{}\n", "{}\x00"]
WORDS = [
    "good film",
    "Good Film",
    "bad film",
    "BAD film",
    "fish & chips",
    "fish &amp; chips",
    "Straße",
    "STRASSE",
    "",
    "a",
    "b",
]
LABELS = ["positive", "negative", "1", 0, "Neg", None, float("nan"), "mixed"]
texts = st.builds(str.format, st.sampled_from(SPELLINGS), st.sampled_from(WORDS) | st.text(max_size=8))
row = st.fixed_dictionaries({"text": texts | st.none(), "label": st.sampled_from(LABELS)})
split_row = st.fixed_dictionaries({"text": texts, "label": st.sampled_from(LABELS), "split": st.sampled_from(SPLITS)})
many_rows = st.lists(row, min_size=1, max_size=25) | st.lists(split_row, min_size=1, max_size=25)


def build(rows: list[dict[str, Any]] | pd.DataFrame, **options: Any) -> Examples:
    try:
        return build_examples(pd.DataFrame(rows), "test", SENTIMENT, **options)
    except CotdError as error:
        if "no usable example" not in str(error):
            raise
        reject()


def key(text: str) -> str:
    return clean_text(text).casefold()


@given(many_rows)
def test_every_row_is_accounted_for_and_no_text_is_there_twice(rows: list[dict[str, Any]]) -> None:
    examples = build(rows)
    counts = examples.counts
    assert counts["rows"] == len(rows)
    assert counts["rows"] == counts["repeats"] + counts["quarantined"] + sum(counts[f"kept_{s}"] for s in SPLITS)
    assert counts["quarantined"] == len(examples.quarantined)
    assert sum(counts[f"kept_{s}"] for s in SPLITS) == len(examples.table) == sum(len(examples.split(s)) for s in SPLITS)
    assert examples.table["text"].map(key).is_unique
    assert examples.table["id"].is_unique
    assert set(examples.table["label"]) <= {*SENTIMENT.labels, None}
    assert examples.quarantined.frame()["reason"].notna().all()


@given(many_rows)
def test_contradictory_repeats_are_quarantined_and_never_kept(rows: list[dict[str, Any]]) -> None:
    examples = build(rows)
    labels = defaultdict(set)
    for r in rows:
        if r["text"] and (label := SENTIMENT.parse(r["label"])):
            labels[key(r["text"])].add(label)
    contradictory = {text for text, found in labels.items() if text and len(found) > 1}
    assert not contradictory & set(examples.table["text"].map(key))
    bad = examples.quarantined.frame()
    assert set(bad.loc[bad["reason"] == CONTRADICTORY, "text"].map(key)) == contradictory


@given(many_rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows: list[dict[str, Any]], shuffler: random.Random) -> None:
    shuffled = shuffler.sample(rows, len(rows))
    columns = ["id", "label", "split"]
    before, after = build(rows), build(shuffled)
    assert before.table[columns].values.tolist() == after.table[columns].values.tolist()
    assert before.digest() == after.digest()
    assert before.counts == after.counts


@given(st.lists(split_row, min_size=1, max_size=25))
def test_a_text_in_two_splits_stays_in_the_most_protected_one(rows: list[dict[str, Any]]) -> None:
    rows = [*rows, *({"text": f"there is a {s} split", "label": None, "split": s} for s in ("validation", "test"))]
    given_splits = defaultdict(set)
    for r in rows:
        if SENTIMENT.parse(r["label"]) or pd.isna(r["label"]):  # a row with a bad label counts for nothing
            given_splits[key(r["text"])].add(r["split"])
    for example in build(rows).table.itertuples():
        assert example.split == max(given_splits[key(example.text)], key=PROTECTION.__getitem__)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=60), st.sampled_from([None, "train"]))
def test_no_group_is_in_two_splits(rows: list[tuple[int, int]], split: str | None) -> None:
    """Whether all splits are carved, or validation is carved from given training rows."""
    table = [{"text": f"group {g} text {t}", "label": "1", "group": g, "split": split} for g, t in rows]
    table += [{"text": "of the test", "label": "1", "group": None, "split": "test"}] if split else []
    examples = build(table, test_share=0.3, validation_share=0.3).table
    examples = examples[examples["text"] != "of the test"]
    assert examples.groupby(examples["text"].str.split().str[1])["split"].nunique().max() == 1


@given(many_rows, st.integers(1, 5), st.integers(1, 5))
def test_rows_in_blocks_give_the_same_examples(rows: list[dict[str, Any]], size: int, read_at_once: int) -> None:
    whole = build(rows)
    frame = pd.DataFrame(rows)
    blocks = (frame.iloc[start : start + size] for start in range(0, len(frame), size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "BLOCK", read_at_once)
        again = build_examples(blocks, "test", SENTIMENT)
        pd.testing.assert_frame_equal(again.table, whole.table)
        pd.testing.assert_frame_equal(again.quarantined.frame(), whole.quarantined.frame())
        assert again.digest() == whole.digest()
    assert again.counts == whole.counts


@pytest.mark.thorough
def test_texts_are_not_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held of each example is its id, its label, its split and its number; while it is read, its position as well."""
    rows = 40_000

    def blocks() -> Iterator[pd.DataFrame]:
        for start in range(0, rows, 100):
            yield pd.DataFrame({"text": [f"{i} {'x' * 200}" for i in range(start, start + 100)], "label": "1"})

    monkeypatch.setattr(spill, "HASHES_A_BUCKET", 1_000)
    monkeypatch.setattr(spill, "WRITTEN_AT", 1_000)
    tracemalloc.start()
    try:
        examples = build_examples(blocks(), "many", SENTIMENT)
        held, peak = tracemalloc.get_traced_memory()
        assert len(examples.rows) == rows
    finally:
        tracemalloc.stop()
    assert held < 20 * rows
    assert peak < 40 * rows
    (first,) = examples.rows.take(slice(1)).blocks()
    assert len(first["text"][0]) > 200


def test_shares_are_met() -> None:
    examples = build([{"text": f"example {i}", "label": i % 2} for i in range(5000)], test_share=0.2, validation_share=0.1)
    assert examples.counts["kept_test"] == pytest.approx(1000, abs=100)
    assert examples.counts["kept_validation"] == pytest.approx(500, abs=75)


def test_ids_are_of_the_cleaned_text_and_its_options() -> None:
    assert example_id("A warm <br/>film &amp; more.") == example_id("a WARM film  & more.")
    assert example_id("Where?", ["sea", "wall"]) not in (example_id("Where?"), example_id("Where?", ["wall", "sea"]))


def test_a_labelled_copy_wins_over_an_unlabelled_one() -> None:
    rows = [{"text": "fine", "label": label, "split": "train"} for label in (None, "positive", None)]
    others = [{"text": f"the {split}", "label": "1", "split": split} for split in ("validation", "test")]
    examples = build([*rows, *others])
    assert examples.split("train")["label"].to_list() == ["positive"]
    assert examples.counts["repeats"] == 2


def test_html_and_white_space_go() -> None:
    assert clean_text("  one<br />two<BR>three &amp;\tfour\n\nfive\x00 ") == "one two three & four five"


def test_the_quarantine_says_why() -> None:
    examples = build([{"text": "fine", "label": "positive"}, {"text": " <br> ", "label": "1"}, {"text": "so-so", "label": "3"}])
    assert examples.quarantined.frame()["reason"].to_list() == ["empty text", "label '3' is not one of negative, positive"]


@pytest.mark.parametrize("rows", [[], [("", "1")], [("fine", "five stars"), ("bad", "one star")]])
def test_nothing_usable_is_an_error_that_says_why(rows: list[tuple[str, str]]) -> None:
    with pytest.raises(CotdError, match=r"no usable example among .* rows.*data\.columns") as caught:
        build_examples(pd.DataFrame(rows, columns=["text", "label"]), "mine.csv", SENTIMENT)
    assert not rows or "empty text" in str(caught.value) or "five stars" in str(caught.value)


def test_limits_take_nested_samples() -> None:
    examples = build([{"text": f"example {i}", "label": i % 2} for i in range(500)])
    small = limit_rows(examples, {"train": 10, "validation": 5})
    large = limit_rows(examples, {"train": 100, "validation": None})
    assert small.split("train")["id"].to_list() == large.split("train")["id"].to_list()[:10]
    assert (small.counts["kept_train"], small.counts["kept_validation"]) == (10, 5)
    assert small.counts["kept_test"] == len(small.split("test")) == len(examples.split("test"))


def test_the_digest_changes_with_a_label_and_a_split() -> None:
    rows = [{"text": f"example {i}", "label": "positive", "split": s} for i, s in enumerate(SPLITS * 3)]
    digest = build(rows).digest()
    assert build([{**rows[0], "label": "negative"}, *rows[1:]]).digest() != digest
    assert build([{**rows[0], "split": "test"}, *rows[1:]]).digest() != digest


def test_fractions_are_nested_and_sized(movie_examples: Examples) -> None:
    train = movie_examples.split("train")
    parts = [select_fraction(train, f)["id"].to_list() for f in (0.01, 0.1, 0.5, 1.0)]
    assert [len(p) for p in parts] == [round(len(train) * f) for f in (0.01, 0.1, 0.5, 1.0)]
    for small, large in itertools.pairwise(parts):
        assert set(small) < set(large)
    tenth = select_fraction(train, 0.1)
    assert (tenth["label"] == "positive").mean() == pytest.approx((train["label"] == "positive").mean(), abs=0.05)
    assert len(select_fraction(train.head(3), 0.1)) == 1


@given(st.text(max_size=40) | st.lists(st.sampled_from(["&amp;", "&", "lt;", "<br", "/>", "#38;", " ", "a"])).map("".join))
def test_a_cleaned_text_stays_as_it_is(text: str) -> None:
    assert clean_text(clean_text(text)) == clean_text(text)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(SPLITS), st.integers(0, 9)), min_size=1, max_size=30))
def test_no_group_is_in_two_of_the_given_splits(rows: list[tuple[int, str, int]]) -> None:
    table = [{"text": f"group {g} text {t} {s}", "label": "1", "group": f"g{g}", "split": s} for g, s, t in rows]
    table += [{"text": f"alone in {s}", "label": "1", "group": None, "split": s} for s in SPLITS]
    examples = build(table)
    grouped = examples.table[examples.table["group"].notna()]
    assert grouped.groupby("group")["split"].nunique().max() == 1
    highest = {g: max((s for h, s, _ in rows if h == g), key=PROTECTION.__getitem__) for g, _, _ in rows}
    assert dict(zip(grouped["group"], grouped["split"], strict=True)) == {f"g{g}": s for g, s in highest.items()}
    left_out = len({row for row in rows if row[1] != highest[row[0]]})
    reasons = examples.quarantined.frame().query("reason == @DIVIDED_GROUP")
    assert reasons["text"].nunique() == left_out
    assert any(DIVIDED_GROUP in note for note in examples.notes) == bool(left_out)


def test_what_is_carved_is_told() -> None:
    rows = [{"text": f"text {i}", "label": i % 2, "split": "test" if i < 40 else "train"} for i in range(200)]
    (note,) = build(rows).notes
    assert note.startswith("test: no validation split is given; ")
    assert not build([*rows, {"text": "held out", "label": 1, "split": "validation"}]).notes


def test_minus_one_is_no_label_and_told() -> None:
    rows = [{"text": f"text {i}", "label": -1 if i < 100 else i % 2} for i in range(200)]
    examples = build(rows)
    assert examples.table["label"].isna().sum() == 100
    assert any("100 rows have the label -1" in note for note in examples.notes)
    signed = Classification(name="signed", labels={"down": [-1], "up": [1]})
    table = build_examples(pd.DataFrame(rows).assign(label=[-1, 1] * 100), "test", signed).table
    assert set(table["label"]) == {"down", "up"}


@given(st.data())
def test_any_number_of_labels_and_any_spelling_of_them(data: st.DataObject) -> None:
    names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
    labels = data.draw(st.lists(names, min_size=2, max_size=300, unique_by=str.casefold))
    try:
        task = Classification(name="many", labels=labels)
    except ValueError:
        reject()
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    examples = build_examples(pd.DataFrame(rows), "many", task).table
    assert dict(zip(examples["text"], examples["label"], strict=True)) == {row["text"]: row["label"] for row in rows}


options = st.lists(
    st.text(st.characters(categories=["L", "N"]), min_size=2, max_size=6), min_size=2, max_size=6, unique_by=str.casefold
)


@given(
    st.lists(
        st.tuples(options, st.integers(0, 5), st.sampled_from(["list", "json", "python", "text", "array"])),
        min_size=1,
        max_size=12,
    )
)
def test_options_are_read_in_every_form(rows: list[tuple[list[str], int, str]]) -> None:
    forms: dict[str, Callable[[list[str]], Any]] = {
        "list": list, "json": json.dumps, "python": repr, "text": lambda c: {"text": c, "label": list("ABCDEF")[: len(c)]},
        "array": np.array,
    }  # fmt: skip
    table = [
        {"text": f"question {i}", "choices": forms[form](choices), "label": choices[answer % len(choices)]}
        for i, (choices, answer, form) in enumerate(rows)
    ]
    examples = build_examples(pd.DataFrame(table), "quiz", MultipleChoice(name="quiz")).table
    found = {row.text: (row.choices, row.label) for row in examples.itertuples()}
    assert found == {f"question {i}": (c, c[a % len(c)]) for i, (c, a, _) in enumerate(rows)}


def test_options_that_are_missing_are_no_words() -> None:
    table = pd.DataFrame(
        {"text": ["a", "b", "c"], "choices": [["x", None], ["x", float("nan")], ["x", "y"]], "label": ["x"] * 3}
    )
    examples = build_examples(table, "quiz", MultipleChoice(name="quiz"))
    assert examples.table["text"].tolist() == ["c"]


def test_the_digest_is_of_texts_as_they_are_wherever_they_come_from() -> None:
    rows = pd.DataFrame({"text": [f"Text {i}" for i in range(30)], "label": 1, "group": "g"})
    digest = build_examples(rows, "here", SENTIMENT).digest()
    assert build_examples(rows[::-1], "there", SENTIMENT).digest() == digest
    for other in (rows.assign(text=rows["text"].str.lower()), rows.assign(group=None), rows.assign(label=0)):
        assert build_examples(other, "here", SENTIMENT).digest() != digest
