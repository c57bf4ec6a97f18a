"""An imported file: each row is joined to the example with its text, or quarantined with a reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotd.data.config import DataConfig
from cotd.data.examples import Examples, build_examples
from cotd.data.rows import example_id
from cotd.data.table import SPLITS
from cotd.errors import CotdError
from cotd.tasks.base import PUNCTUATION
from cotd.teachers.config import TeacherConfig
from cotd.teachers.imported import ImportedReader, parse_model_label
from cotd.teachers.teacher import Teacher
from tests.conftest import example_text
from tests.hostile import HOSTILE
from tests.tasks import SENTIMENT

DATA = DataConfig(source="reviews.csv")
TEXTS = [example_text(i, i % 2 == 0) for i in range(9)]
# Cells as models write them → their labels.
LABELS: dict[Any, str | None] = {
    "positive": "positive", "Positive.": "positive", " **NEGATIVE** ": "negative", "'neg'": "negative", 1: "positive",
    "Mixed": None, "The sentiment is not positive.": None, "": None, None: None, "-1": None,
}  # fmt: skip
SPELLINGS = ["{}", "  {} ", "{}<br />", "{}\n"]
RATIONALES: list[Any] = ["The words are telling.", " Because\nof the words. ", "No.", "", None, 7, *HOSTILE[:12]]
row = st.fixed_dictionaries(
    {
        "text": st.builds(str.format, st.sampled_from(SPELLINGS), st.sampled_from([*TEXTS, "another text", ""])) | st.none(),
        "label": st.sampled_from(list(LABELS)),
        "rationale": st.sampled_from(RATIONALES),
        "gold_rationale": st.sampled_from(RATIONALES),
    }
)


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Nine examples, three a split; the last of each has no label."""
    labels = [None if i % 3 == 2 else "positive" if i % 2 == 0 else "negative" for i in range(9)]
    return build_examples(
        pd.DataFrame({"text": TEXTS, "label": labels, "split": [SPLITS[i // 3] for i in range(9)]}), "reviews.csv", SENTIMENT
    )


@given(st.lists(row, min_size=1, max_size=40))
def test_every_row_is_joined_or_quarantined(examples: Examples, rows: list[dict[str, Any]]) -> None:
    columns = {"label": "label", "rationale": "rationale", "gold_rationale": "gold_rationale"}
    config = TeacherConfig(model="gpt", imported={"columns": columns}, held_out_rationales=True)  # type: ignore[arg-type]
    reader = ImportedReader(["imported.csv"], DATA, Teacher("gpt", "1", config), examples, SENTIMENT)
    split_of = {example_id(text): SPLITS[i // 3] for i, text in enumerate(TEXTS)}
    expected = [(example_id(r["text"] or ""), LABELS[r["label"]]) for r in rows]
    for start in (0, 7):  # in two blocks
        reader.add(pd.DataFrame(rows[start : 7 if not start else None], columns=list(rows[0]), dtype=object), "imported.csv")
    if not reader.usable:
        with pytest.raises(CotdError, match=f"none of its {len(rows)} rows"):
            reader.output()
        return
    output = reader.output()
    table, counts = output.annotations.table(), output.imported.counts if output.imported else {}
    own = table[~table["gold_conditioned"]]
    trained = [(i, label) for i, label in expected if split_of.get(i) == "train"]
    assert Counter(
        zip(own["example_id"], own["label"].astype(object).where(own["label"].notna(), None), strict=True)
    ) == Counter(trained)
    for i, samples in own.groupby("example_id")["sample"]:
        assert list(samples) == list(range(len(samples)))
        # In the file's order.
        assert [label if isinstance(label, str) else None for label in own[own["example_id"] == i]["label"]] == [
            label for j, label in trained if j == i
        ]
    assert table[table["error"].isna()]["label"].isin(SENTIMENT.labels).all()
    assert (table[table["error"].isna()]["rationale"].str.split().str.len() >= 3).all()
    gold = table[table["gold_conditioned"]]
    assert (gold["label"] == gold["example_id"].map(examples.rows.gold(gold["example_id"]))).all()
    # Nothing is lost: rows of no example, with their reasons, and the others by split.
    quarantined = output.imported.quarantined.table() if output.imported else pd.DataFrame()
    unknown = [k for k, (i, _) in enumerate(expected, 1) if i not in split_of]
    assert set(unknown) <= set(quarantined["row"])
    assert counts["rows"] == len(rows) == counts["matched"] + len(unknown)
    assert counts["quarantined"] == quarantined["reason"].value_counts().to_dict()
    assert counts["without_row_train"] == 3 - len({i for i, _ in trained})
    first: dict[str, str | None] = {}  # label of each test example
    for i, label in expected:
        if split_of.get(i) == "test":
            first[i] = first.get(i) or label
    predicted = output.test.set_index("example_id")["predicted"]
    assert {i: label if isinstance(label, str) else None for i, label in predicted.items()} == first
    held_out = {
        i for i, _ in expected if i in set(examples.table[examples.table["label"].notna()]["id"]) and split_of[i] != "train"
    }
    assert set(output.held_out.table()["example_id"]) == held_out


@given(
    st.sampled_from(["positive", "Positive", "NEGATIVE"]), st.text(PUNCTUATION, max_size=4), st.text(PUNCTUATION, max_size=4)
)
def test_labels_count_with_punctuation_around_them(word: str, before: str, after: str) -> None:
    assert parse_model_label(before + word + after, SENTIMENT) == word.lower()


@pytest.mark.parametrize(
    "value", [*(v for v, label in LABELS.items() if label is None), "positive?", "not positive", float("nan"), [1], {}]
)
def test_other_words_are_not_labels(value: Any) -> None:
    assert parse_model_label(value, SENTIMENT) is None
