"""What a teacher gives: annotations, rationales of held-out examples, and its own labels of test examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cotd.data.config import SPLITS
from cotd.data.examples import Examples
from cotd.data.spill import SortedRows
from cotd.data.table import NONE, ExampleTable
from cotd.teachers.annotations import KEY, SCHEMA
from cotd.teachers.config import TeacherConfig

RATIONALES = pa.schema({"example_id": pa.string(), "rationale": pa.string()})


@dataclass(frozen=True)
class ImportedRows:
    """What became of the rows of an imported file.

    Attributes:
        counts: `files`; `rows`; `matched`, those of an example; `examples` that have any; `samples`, the most that a training
            example has; `without_row_train` and `without_row_test`, examples that have none; `quarantined`, reason → rows;
            `other_labels`, what stood in place of a label of the task → rows, the ten most common.
        quarantined: the rows that cannot be used, in whole or in part, and why; one with two reasons is there twice.
    """

    counts: dict[str, Any]
    quarantined: SortedRows


@dataclass
class TeacherOutput:
    """What a strategy returns.

    Attributes:
        annotations: of the training examples, rows of `cotd.teachers.annotations.SCHEMA`.
        test: the teacher's own labels of the test examples, see `test_table`.
        calibration: what was fitted on what, or None.
        held_out: the teacher's own rationales of validation and test examples with columns example_id and rationale, "" if it
            gave none; without the examples that it was not asked about; empty without `held_out_rationales`.
        answered_first: completions whose answer came before the rationale, which then had no part in it.
        imported: what became of the rows of an imported file, if the teacher was not asked.
    """

    annotations: SortedRows
    test: pd.DataFrame
    calibration: dict[str, Any] | None
    held_out: SortedRows
    imported: ImportedRows | None = None
    answered_first: int = 0


def annotation_rows(
    config: TeacherConfig, examples: Examples, finish: Callable[[pd.DataFrame], pd.DataFrame] = lambda block: block
) -> SortedRows:
    """Where the annotations of a study go."""
    expected = int((examples.rows.splits == SPLITS.index("train")).sum()) * config.samples * (1 + config.gold_conditioned)
    return SortedRows(SCHEMA, KEY, expected, examples.rows.texts.spill_dir, finish)


def rationale_rows(explained: ExampleTable) -> SortedRows:
    """Where the rationales of held-out examples go."""
    return SortedRows(RATIONALES, ["example_id"], len(explained), explained.texts.spill_dir)


def with_vote_shares(annotations: pd.DataFrame) -> pd.DataFrame:
    """The annotations of some examples; `label_probability` is the share of an example's labelled samples that have the label."""
    votes = annotations.loc[~annotations["gold_conditioned"] & annotations["label"].notna(), ["example_id", "label", "sample"]]
    same = votes.groupby(["example_id", "label"])["sample"].transform("size")
    share = same / votes.groupby("example_id")["sample"].transform("size")
    return annotations.assign(label_probability=share.reindex(annotations.index).astype("float64"))


def explained_examples(config: TeacherConfig, examples: Examples) -> ExampleTable:
    """The validation and test examples that the teacher writes a rationale of, with its own label."""
    rows = examples.rows
    return rows.take((rows.splits != SPLITS.index("train")) & (rows.labels != NONE) & config.held_out_rationales)


def test_table(test: ExampleTable, labels: np.ndarray, probabilities: np.ndarray | None, asked: np.ndarray) -> pd.DataFrame:
    """The teacher's own labels beside gold labels, in columns example_id, gold, predicted and label_probability.

    Args:
        labels: (N,) None if the teacher gave no label of the task, which counts as wrong.
        probabilities: (N,) of the labels, or None. asked: (N,) booleans; other examples are left out.
    """
    table = pd.DataFrame({"example_id": list(test.decode_ids()), "gold": test.label_names().tolist()})
    table["predicted"], table["label_probability"] = pd.Series(labels, dtype=object), probabilities
    return table[asked].reset_index(drop=True)
