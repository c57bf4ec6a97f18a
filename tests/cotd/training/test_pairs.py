"""What each method trains on, on three examples that can be checked by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from cotd.errors import CotdError
from cotd.teachers.annotations import ANNOTATION_COLUMNS
from cotd.training.methods import METHODS, Method
from cotd.training.pairs import training_pairs
from tests.tasks import QUIZ, SENTIMENT

EXAMPLES = pd.DataFrame(
    [("r1", "Lovely.", "positive", "train"), ("r2", "Dire.", "negative", "train"), ("r3", "Fine.", "positive", "train")],
    columns=["id", "text", "label", "split"],
)


def annotations(*rows: tuple[str, int, bool, str | None, str, str | None]) -> pd.DataFrame:
    """Annotations of (example_id, sample, gold_conditioned, label, rationale, error)."""
    columns = ["example_id", "sample", "gold_conditioned", "label", "rationale", "error"]
    return pd.DataFrame(rows, columns=columns).reindex(columns=ANNOTATION_COLUMNS)


# The teacher is right on r1, wrong on r2, and its rationale for r3 is quarantined.
ANNOTATIONS = annotations(
    ("r1", 0, False, "positive", "It says lovely.", None),
    ("r1", 0, True, "positive", "It says lovely.", None),
    ("r2", 0, False, "positive", "Dire can be praise.", None),
    ("r2", 0, True, "negative", "Dire is a complaint.", None),
    ("r3", 0, False, "negative", "cut", "rationale cut off by the token limit"),
    ("r3", 0, True, "positive", "Fine is mild praise.", None),
)


def pairs(method: str, examples: pd.DataFrame = EXAMPLES, table: pd.DataFrame | None = ANNOTATIONS) -> list[tuple[object, ...]]:
    made = training_pairs(METHODS[method], examples, table, SENTIMENT)
    assert list(made.columns) == ["example_id", "text", "target", "target_kind", "weight"]
    return list(made.itertuples(index=False, name=None))


def test_finetune_trains_on_gold_alone() -> None:
    expected = [
        ("r1", "Lovely.", "positive", "label", 1.0),
        ("r2", "Dire.", "negative", "label", 1.0),
        ("r3", "Fine.", "positive", "label", 1.0),
    ]
    assert pairs("finetune") == expected
    assert pairs("finetune", table=None) == expected


def test_distill_trains_on_the_teachers_labels() -> None:
    assert pairs("distill") == [
        ("r1", "Lovely.", "positive", "label", 1.0),
        ("r2", "Dire.", "positive", "label", 1.0),
    ]


def test_cot_labelled_trains_on_gold_and_rationales_given_gold() -> None:
    assert pairs("cot_labelled") == [
        ("r1", "Lovely.", "positive", "label", 1.0),
        ("r1", "Lovely.", "It says lovely.", "rationale", 1.0),
        ("r2", "Dire.", "negative", "label", 1.0),
        ("r2", "Dire.", "Dire is a complaint.", "rationale", 1.0),
        ("r3", "Fine.", "positive", "label", 1.0),
        ("r3", "Fine.", "Fine is mild praise.", "rationale", 1.0),
    ]


def test_cot_unlabelled_trains_on_the_teachers_labels_and_its_own_rationales() -> None:
    assert pairs("cot_unlabelled") == [
        ("r1", "Lovely.", "positive", "label", 1.0),
        ("r1", "Lovely.", "It says lovely.", "rationale", 1.0),
        ("r2", "Dire.", "positive", "label", 1.0),
        ("r2", "Dire.", "Dire can be praise.", "rationale", 1.0),
    ]


def test_cot_joint_trains_on_one_target_that_ends_with_the_label() -> None:
    assert pairs("cot_joint") == [
        ("r1", "Lovely.", "It says lovely. Answer: positive", "joint", 1.0),
        ("r2", "Dire.", "Dire is a complaint. Answer: negative", "joint", 1.0),
        ("r3", "Fine.", "Fine is mild praise. Answer: positive", "joint", 1.0),
    ]
    assert pairs("cot_joint_unlabelled") == [
        ("r1", "Lovely.", "It says lovely. Answer: positive", "joint", 1.0),
        ("r2", "Dire.", "Dire can be praise. Answer: positive", "joint", 1.0),
    ]


def test_cot_after_trains_on_one_target_that_begins_with_the_label() -> None:
    assert pairs("cot_after") == [
        ("r1", "Lovely.", "positive\nIt says lovely.", "after_label", 1.0),
        ("r2", "Dire.", "negative\nDire is a complaint.", "after_label", 1.0),
        ("r3", "Fine.", "positive\nFine is mild praise.", "after_label", 1.0),
    ]
    assert pairs("cot_after_unlabelled") == [
        ("r1", "Lovely.", "positive\nIt says lovely.", "after_label", 1.0),
        ("r2", "Dire.", "positive\nDire can be praise.", "after_label", 1.0),
    ]


def test_a_filtered_rationale_leaves_the_label() -> None:
    table = ANNOTATIONS.assign(error=[None, "filtered: length", "filtered: length", None, "filtered: agrees_with_gold", None])
    labels = [pair for pair in pairs("cot_labelled") if pair[3] == "label"]
    assert [pair for pair in pairs("cot_labelled", table=table) if pair[3] == "label"] == labels
    assert [pair[0] for pair in pairs("cot_labelled", table=table) if pair[3] == "rationale"] == ["r2", "r3"]
    assert pairs("distill", table=table) == pairs("distill"), "r3 has the label filtered"
    assert [pair[0] for pair in pairs("cot_joint", table=table)] == ["r2", "r3"], "rationale and label are one target"
    with pytest.raises(CotdError, match="needs annotations, and none is usable"):
        pairs("cot_labelled", table=table.assign(error="filtered: length"))


def test_distill_soft_trains_on_every_answer_by_the_teachers_probability_of_it() -> None:
    each = [[0.25, 0.75], None, [0.0004, 0.9996], None, [0.5, 0.5], None]
    assert pairs("distill_soft", table=ANNOTATIONS.assign(probabilities=each)) == [
        ("r1", "Lovely.", "negative", "label", 0.25),
        ("r1", "Lovely.", "positive", "label", 0.75),
        ("r2", "Dire.", "positive", "label", 1.0),
    ], "what is all but impossible is no target; the annotation of r3 is quarantined"
    with pytest.raises(CotdError, match=r"learns the teacher's probabilities.*score_then_explain"):
        pairs("distill_soft")
    columns = ["id", "text", "choices", "label", "split"]
    examples = pd.DataFrame([("q1", "One and one?", ["two", "three", "four"], "two", "train")], columns=columns)
    table = annotations(("q1", 0, False, "two", "", None)).assign(probabilities=[[0.7, 0.2, 0.1, 0.0]])
    made = training_pairs(METHODS["distill_soft"], examples, table, QUIZ)
    assert made["target"].tolist() == ["two", "three", "four"]
    assert made["weight"].to_list() == pytest.approx([0.7, 0.2, 0.1])


def test_rationale_input_reads_the_teachers_own_rationale_and_never_one_written_given_gold() -> None:
    assert pairs("rationale_input") == [
        ("r1", "It says lovely. Review: Lovely.", "positive", "label", 1.0),
        ("r2", "Dire can be praise. Review: Dire.", "negative", "label", 1.0),
    ]
    assert [row[2] for row in pairs("rationale_input_unlabelled")] == ["positive", "positive"]
    with pytest.raises(ValueError, match="only the teacher's own rationales can be inputs"):
        Method("leaky", "", "gold", "given_gold", "input")
    with pytest.raises(ValueError, match="probabilities are the teacher's"):
        Method("soft", "", "gold", soft=True)
    given_gold = ANNOTATIONS[ANNOTATIONS["gold_conditioned"]]
    with pytest.raises(CotdError, match="'rationale_input' needs annotations"):
        pairs("rationale_input", table=given_gold)


# Those with stages have the pairs of each stage's method.
NEEDING = [name for name, method in METHODS.items() if name != "finetune" and not method.stages]


@pytest.mark.parametrize("method", NEEDING)
def test_an_example_without_annotation_is_dropped(method: str) -> None:
    every = ANNOTATIONS.assign(probabilities=[[0.5, 0.5]] * len(ANNOTATIONS))
    table = every[every["example_id"] != "r1"]
    assert {row[0] for row in pairs(method, table=table)} == {row[0] for row in pairs(method, table=every)} - {"r1"}


def test_an_example_without_gold_is_dropped_where_gold_is_the_target() -> None:
    examples = EXAMPLES.assign(label=["positive", None, "positive"])
    assert {row[0] for row in pairs("finetune", examples)} == {"r1", "r3"}
    assert {row[0] for row in pairs("distill", examples)} == {"r1", "r2"}


def test_unlabelled_examples_read_back_from_parquet_are_dropped_too(tmp_path: Path) -> None:
    """A trial reads its examples from Parquet, where a missing label comes back as pandas' NaN."""
    EXAMPLES.assign(label=["positive", None, "positive"]).to_parquet(tmp_path / "reviews.parquet")
    assert {row[0] for row in pairs("finetune", pd.read_parquet(tmp_path / "reviews.parquet"))} == {"r1", "r3"}


def test_several_samples_give_one_label_pair_and_a_rationale_pair_each() -> None:
    samples = [("r1", s, False, "positive", f"Reason {s}.", None) for s in (1, 0, 2)]
    assert [(row[2], row[3]) for row in pairs("cot_unlabelled", table=annotations(*samples))] == [
        ("positive", "label"),
        ("Reason 0.", "rationale"),
        ("Reason 1.", "rationale"),
        ("Reason 2.", "rationale"),
    ]
    assert [row[2] for row in pairs("cot_joint_unlabelled", table=annotations(*samples))] == [
        f"Reason {s}. Answer: positive" for s in range(3)
    ]
    assert [row[1] for row in pairs("rationale_input", table=annotations(*samples))] == ["Reason 0. Review: Lovely."]


@pytest.mark.parametrize("method", ["finetune", "cot_labelled", "cot_joint", "rationale_input"])
def test_no_gold_at_all_is_an_error(method: str) -> None:
    with pytest.raises(CotdError, match=rf"'{method}' trains on gold labels.*data\.columns\.label"):
        pairs(method, EXAMPLES.assign(label=None))


@pytest.mark.parametrize("method", NEEDING)
@pytest.mark.parametrize("table", [None, ANNOTATIONS.assign(error="no answer"), ANNOTATIONS[:0]], ids=["none", "bad", "empty"])
def test_no_usable_annotation_is_an_error(method: str, table: pd.DataFrame | None) -> None:
    with pytest.raises(CotdError, match=f"'{method}' (needs annotations|learns).*cotd annotate CONFIG"):
        pairs(method, table=table)


def test_only_finetune_does_without_the_teacher() -> None:
    assert [name for name, method in METHODS.items() if not method.distilled] == ["finetune"]
