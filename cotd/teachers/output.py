"""What a teacher gives: annotations, rationales of held-out reviews, and its own labels of test reviews."""

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
from cotd.teachers.annotations import KEY, SCHEMA
from cotd.teachers.config import TeacherConfig

RATIONALES = pa.schema({"review_id": pa.string(), "rationale": pa.string()})


@dataclass(frozen=True)
class ImportedRows:
    """What became of the rows of an imported file.

    Attributes:
        counts: `files`; `rows`; `matched`, those of a review; `reviews` that have any; `samples`, the most that a training
            review has; `unanswered_train` and `unanswered_test`, reviews that have none; `quarantined`, reason → rows;
            `other_labels`, what stood in place of a label of the task → rows, the ten most common.
        quarantined: the rows that cannot be used, in whole or in part, and why; one with two reasons is there twice.
    """

    counts: dict[str, Any]
    quarantined: SortedRows


@dataclass
class TeacherOutput:
    """What a strategy returns.

    Attributes:
        annotations: of the training reviews, rows of `cotd.teachers.annotations.SCHEMA`.
        test: the teacher's own labels of the test reviews, see `test_table`.
        calibration: what was fitted on what, or None.
        held_out: the teacher's own rationales of validation and test reviews with columns review_id and rationale, "" if it
            gave none; without the reviews that it was not asked about; empty without `held_out_rationales`.
        imported: what became of the rows of an imported file, if the teacher was not asked.
    """

    annotations: SortedRows
    test: pd.DataFrame
    calibration: dict[str, Any] | None
    held_out: SortedRows
    imported: ImportedRows | None = None


def annotation_rows(
    config: TeacherConfig, reviews: Examples, finish: Callable[[pd.DataFrame], pd.DataFrame] = lambda block: block
) -> SortedRows:
    """Where the annotations of a study go."""
    expected = int((reviews.rows.splits == SPLITS.index("train")).sum()) * config.samples * (1 + config.gold_conditioned)
    return SortedRows(SCHEMA, KEY, expected, reviews.rows.texts.spill_dir, finish)


def rationale_rows(explained: ExampleTable) -> SortedRows:
    """Where the rationales of held-out reviews go."""
    return SortedRows(RATIONALES, ["review_id"], len(explained), explained.texts.spill_dir)


def with_vote_shares(annotations: pd.DataFrame) -> pd.DataFrame:
    """The annotations of some reviews; `label_probability` is the share of a review's labelled samples that have the label."""
    votes = annotations.loc[~annotations["gold_conditioned"] & annotations["label"].notna(), ["review_id", "label", "sample"]]
    same = votes.groupby(["review_id", "label"])["sample"].transform("size")
    share = same / votes.groupby("review_id")["sample"].transform("size")
    return annotations.assign(label_probability=share.reindex(annotations.index).astype("float64"))


def explained_reviews(config: TeacherConfig, reviews: Examples) -> ExampleTable:
    """The validation and test reviews that the teacher writes a rationale of, with its own label."""
    rows = reviews.rows
    return rows.take((rows.splits != SPLITS.index("train")) & (rows.labels != NONE) & config.held_out_rationales)


def test_table(test: ExampleTable, labels: np.ndarray, probabilities: np.ndarray | None, asked: np.ndarray) -> pd.DataFrame:
    """The teacher's own labels beside gold labels, in columns review_id, gold, predicted and label_probability.

    Args:
        labels: (N,) None if the teacher gave no label of the task, which counts as wrong.
        probabilities: (N,) of the labels, or None. asked: (N,) booleans; other reviews are left out.
    """
    table = pd.DataFrame({"review_id": list(test.decode_ids()), "gold": test.label_names().tolist()})
    table["predicted"], table["label_probability"] = pd.Series(labels, dtype=object), probabilities
    return table[asked].reset_index(drop=True)
