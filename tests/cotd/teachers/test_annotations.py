"""The Annotation table: rows in any order become one table, and its digest covers what students learn from."""

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from cotd.data.spill import SortedRows
from cotd.teachers.annotations import ANNOTATION_COLUMNS, KEY, SCHEMA, annotation_row, annotations_digest

ORIGIN = {"teacher": "t", "revision": "r", "prompt_hash": "p"}
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)
KEYS = st.tuples(st.integers(0, 3).map(lambda n: f"{n:016x}"), st.integers(0, 12), st.booleans())


def rows_of(drawn):
    """Annotation rows of drawn (key, label, text) triples."""
    rows = []
    for (example, sample, by_gold), label, text in drawn:
        completion = {"finish_reason": "stop", "logprob": -1.0, "prompt_tokens": 5, "output_tokens": 3, "error": None}
        rows.append(annotation_row(example, sample, by_gold, label, None, text, completion, ORIGIN))
    return rows


DRAWN = st.lists(
    st.tuples(KEYS, st.sampled_from(["positive", "negative", None]), TEXTS), min_size=1, max_size=30, unique_by=lambda d: d[0]
)


@settings(deadline=None, max_examples=50)
@given(DRAWN, st.randoms(use_true_random=False))
def test_a_table_and_its_digest_do_not_depend_on_the_order_of_completions(drawn, random):
    def made(rows):
        table = SortedRows(SCHEMA, KEY)
        for row in rows:
            table.add(row)
        return table.table()

    rows = rows_of(drawn)
    table = made(rows)
    random.shuffle(rows)
    again = made(rows)
    pd.testing.assert_frame_equal(table, again)
    assert list(table.columns) == ANNOTATION_COLUMNS
    assert list(zip(*(table[c] for c in KEY), strict=True)) == sorted(
        (r["example_id"], r["gold_conditioned"], r["sample"]) for r in rows
    )
    assert annotations_digest(table) == annotations_digest(table.sample(frac=1, random_state=0))


def test_a_digest_changes_only_with_what_is_learned():
    rows = rows_of([(("a", 0, False), "positive", "It is warm and funny."), (("b", 0, True), "negative", "It is a dull film.")])
    table = pd.DataFrame(rows)
    assert annotations_digest(table) == annotations_digest(table.assign(output_tokens=9, teacher="another"))
    assert annotations_digest(table) != annotations_digest(table.assign(rationale="It is another thing."))
    assert annotations_digest(table) != annotations_digest(table.assign(error="filtered: length"))
