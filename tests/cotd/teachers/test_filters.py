"""Filters of annotations: what each takes out, alone, composed, and in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotd.teachers.filters import FILTERS, FilterContext, apply_filters, filter_problems, filtered_blocks, label_stands
from tests.tasks import SENTIMENT


def read(ids: Sequence[str]) -> tuple[list[str], list[None]]:
    return [f"A film of the letter {example_id}." for example_id in ids], [None] * len(ids)


CONTEXT = FilterContext(SENTIMENT, {"a": "positive", "b": "negative"}, read)


def annotations(*rows: tuple[str, int, bool, str | None, str]) -> pd.DataFrame:
    """(example_id, sample, gold_conditioned, label, rationale); a row without a label is quarantined."""
    table = pd.DataFrame(rows, columns=["example_id", "sample", "gold_conditioned", "label", "rationale"])
    return table.assign(error=[None if isinstance(label, str) else "no label" for label in table["label"]])


def kept(table: pd.DataFrame, *filters: Any) -> list[int]:
    return list(np.flatnonzero(apply_filters(table, filters, CONTEXT)["error"].isna()))


SAMPLES = annotations(
    ("a", 0, False, "negative", "A dull thing, the reviewer says."),
    ("a", 1, False, "positive", "A warm and positive thing, the reviewer says."),
    ("a", 2, False, "positive", "It is praised."),
    ("b", 0, False, "negative", "The reviewer is bored by it from the first minute to the last."),
    ("b", 1, False, "positive", "The Reviewer is bored, by it from the first minute to the last!"),
    ("c", 0, False, None, ""),
    ("c", 1, False, "positive", "Fine."),
    ("a", 0, True, "positive", "It is praised."),
)


@pytest.mark.parametrize(
    ("rationale", "at_least", "kept_"),
    [
        ('It says "the letter a", which says little.', 1, True),
        ("It says “A film …  letter a.”, which says little.", 1, True),
        ('It calls it "a film" of "The Letter".', 2, True),
        ('It says "a film", which says little.', 2, False),
        ('It says "a film of letters", which says little.', 1, False),
        ('It says "a film" and "a book", which says little.', 1, False),
        ('It says "film of the letter a', 1, False),
        ('It says "fil", which is a part of a word.', 1, False),
        ("It says little.", 1, False),
        ("It says little.", 0, True),
    ],
)
def test_a_rationale_that_quotes_what_is_not_in_the_text_is_taken_out(rationale: str, at_least: int, kept_: bool) -> None:
    table = annotations(("a", 0, False, "positive", rationale))
    assert kept(table, {"quotes_the_text": {"at_least": at_least}}) == [0] * kept_


def test_the_label_of_a_filtered_rationale_stands() -> None:
    table = apply_filters(SAMPLES, ["agrees_with_gold", "length"], CONTEXT)
    assert list(np.flatnonzero(label_stands(table["error"]))) == [1, 2, 3, 6, 7]
    assert table["error"][6] == "filtered: length"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], [0, 1, 2, 3, 4, 6, 7]),
        (["agrees_with_gold"], [1, 2, 3, 6, 7]),
        (["agrees_with_majority"], [1, 2, 3, 6, 7]),
        (["length"], [0, 1, 2, 3, 4, 7]),
        ([{"length": {"min_words": 1, "max_words": 3}}], [2, 6, 7]),
        (["near_duplicates"], [0, 1, 2, 3, 6, 7]),
        (["names_the_label"], [1]),
        ([{"names_the_label": {"keep": "without"}}], [0, 2, 3, 4, 6, 7]),
        (["agrees_with_majority", "length", "near_duplicates"], [1, 2, 3, 7]),
    ],
)
def test_filters_compose(filters: list[Any], expected: list[int]) -> None:
    assert kept(SAMPLES, *filters) == expected


def test_what_a_filter_takes_out_is_named() -> None:
    filtered = apply_filters(SAMPLES, ["agrees_with_gold", "length"], CONTEXT)
    assert filtered["error"].value_counts().to_dict() == {
        "filtered: agrees_with_gold": 2, "filtered: length": 1, "no label": 1
    }  # fmt: skip
    assert SAMPLES["error"].notna().sum() == 1, "the input table must not change"


def test_rationale_helps_keeps_what_makes_the_label_likelier() -> None:
    def gain(texts: list[str], choices: list[None], rationales: list[str], labels: list[str]) -> np.ndarray:
        assert list(texts) == [f"A film of the letter {i}." for i in "aaabbca"]
        return np.array(
            [0.5 if "praised" in why and label == "positive" else -0.1 for why, label in zip(rationales, labels, strict=True)]
        )

    context = FilterContext(SENTIMENT, {}, read, {"some/model": gain})
    filtered = apply_filters(SAMPLES, [{"rationale_helps": {"model": "some/model"}}], context)
    assert list(np.flatnonzero(filtered["error"].isna())) == [2, 7]
    assert (filtered["error"] == "filtered: rationale_helps").sum() == 5
    assert filter_problems([{"rationale_helps": {"model": 3}}]) == ["rationale_helps: model cannot be 3"]


@pytest.mark.parametrize("name", FILTERS)
def test_filters_of_nothing(name: str) -> None:
    assert kept(SAMPLES[:0], name) == []


words = st.lists(st.sampled_from(["a", "warm", "and", "funny", "film", "that", "moved", "me", "to", "tears"]), max_size=12).map(
    " ".join
)


one_filter = st.sampled_from(
    [*(set(FILTERS) - {"rationale_helps"}), {"length": {"max_words": 6}}, {"near_duplicates": {"similarity": 0.5}}]
)
one_row = st.tuples(
    st.sampled_from("abcde"), st.integers(0, 2), st.booleans(), st.sampled_from(["positive", "negative", None]), words
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(one_row, max_size=20, unique_by=lambda r: r[:3]),
    st.lists(one_filter, max_size=4),
    st.sets(st.sampled_from("bcde")),
)
def test_filters_take_out_the_same_in_blocks_as_in_the_whole(rows: list[Any], filters: list[Any], starts: set[str]) -> None:
    """Blocks hold whole examples; `starts` says with which a block begins."""
    table = annotations(*sorted(rows, key=lambda r: (r[0], r[2], r[1])))
    number = table["example_id"].map(lambda i: sum(s <= i for s in starts))
    blocks = [block.reset_index(drop=True) for _, block in table.groupby(number)]
    errors = [block["error"] for block in filtered_blocks(lambda: iter(blocks), filters, lambda block: CONTEXT)()]
    expected = apply_filters(table, filters, CONTEXT)["error"]
    assert [e for error in errors for e in error.where(error.notna(), None)] == list(expected.where(expected.notna(), None))
