"""What a teacher gives, asked or read: annotations, rationales of held-out examples, labels of test examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cotd.data.examples import Examples
from cotd.data.spill import SortedRows
from cotd.data.table import NONE, SPLITS, ExampleTable
from cotd.teachers.annotations import AnnotationRows
from cotd.teachers.config import TeacherConfig
from cotd.teachers.teacher import Teacher

RATIONALES = pa.schema({"review_id": pa.string(), "rationale": pa.string()})


@dataclass
class TeacherOutput:
    """What a strategy returns.

    Attributes:
        rows: the annotations of the training reviews.
        test: the teacher's own labels of the test reviews: review_id, gold, predicted, label_probability; `predicted`
            is None where it gave no answer in the label set. Reviews that it was not asked for are left out.
        calibration: what was fitted on what, or None.
        held_out: the teacher's own rationales of validation and test reviews, "" where it gave none, with columns review_id
            and rationale; of the reviews that it was asked about, which takes `held_out_rationales`.
        read: what became of the rows of a file of answers, where the teacher was not asked.
    """

    rows: AnnotationRows
    test: pd.DataFrame
    calibration: dict[str, Any] | None
    held_out: SortedRows
    read: ImportedRows | None = None

    @property
    def annotations(self) -> pd.DataFrame:
        """The Annotation table, in memory."""
        return self.rows.table()

    @property
    def rationales(self) -> dict[str, str]:
        """Validation or test review id → rationale, in memory."""
        table = self.held_out.table()
        return dict(zip(table["review_id"], table["rationale"], strict=True))


def annotation_rows(
    teacher: Teacher, reviews: Examples, finish: Callable[[pd.DataFrame], pd.DataFrame] = lambda block: block
) -> AnnotationRows:
    """Where a strategy puts its rows."""
    kinds = 1 + teacher.config.gold_conditioned
    expected = int((reviews.rows.splits == SPLITS.index("train")).sum()) * teacher.config.samples * kinds
    return AnnotationRows(expected, reviews.rows.texts.spill_dir, finish)


def rationale_rows(explained: ExampleTable) -> SortedRows:
    """Where a strategy puts the rationales of held-out reviews."""
    return SortedRows(RATIONALES, ["review_id"], len(explained), explained.texts.spill_dir)


def with_shares_of_votes(annotations: pd.DataFrame) -> pd.DataFrame:
    """Chains of thought of some reviews, with the share of each review's samples with a label that have this label."""
    votes = annotations.loc[~annotations["gold_conditioned"] & annotations["label"].notna(), ["review_id", "label", "sample"]]
    same = votes.groupby(["review_id", "label"])["sample"].transform("size")
    share = same / votes.groupby("review_id")["sample"].transform("size")
    return annotations.assign(label_probability=share.reindex(annotations.index).astype("float64"))


def explained_reviews(config: TeacherConfig, reviews: Examples) -> ExampleTable:
    """The validation and test reviews that the teacher writes a rationale of, with its own label."""
    rows = reviews.rows
    return rows.take((rows.splits != SPLITS.index("train")) & (rows.labels != NONE) & config.held_out_rationales)


def test_table(test: ExampleTable, labels: np.ndarray, probabilities: np.ndarray | None, asked: np.ndarray) -> pd.DataFrame:
    """The teacher's own labels beside gold; a missing answer stays None and counts as wrong, one not asked for is left out.

    Args:
        labels: (N,) None where it gave no answer. probabilities: (N,) or None where it gives none. asked: (N,) booleans.
    """
    table = pd.DataFrame({"review_id": list(test.decode_ids()), "gold": test.label_names().tolist()})
    table["predicted"], table["label_probability"] = pd.Series(labels, dtype=object), probabilities
    return table[asked].reset_index(drop=True)


@dataclass(frozen=True)
class ImportedRows:
    """What became of the rows of a file of answers.

    Attributes:
        counts: `files`; `rows`; `matched`, those of a review; `reviews` that have any; `samples`, the most that a training
            review has; `unanswered_train` and `unanswered_test`, reviews that have none; `quarantined`, reason → rows;
            `other_labels`, what stood in place of a label of the task → rows, the commonest ten.
        quarantined: the rows that are of no use, in whole or in part, and why, with the columns of SET_ASIDE; one with two reasons
            is there twice.
    """

    counts: dict[str, Any]
    quarantined: SortedRows
