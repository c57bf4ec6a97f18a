"""Which examples a student has seen: their ids lie beside it, so that it is not scored on what it was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from cotd.data.table import encode_ids
from cotd.errors import CotdError

SEEN = "examples_seen.npz"


def write_seen(student: Path, train: pd.DataFrame, validation: pd.DataFrame) -> None:
    """Writes the ids of the examples that a student was trained on and selected by into its folder."""
    np.savez(student / SEEN, train=encode_ids(train["id"].to_list()), validation=encode_ids(validation["id"].to_list()))


def was_seen(
    student: str | Path, examples: pd.DataFrame, splits: tuple[str, ...] = ("train", "validation")
) -> np.ndarray | None:
    """(N,) whether a student has seen each example, whatever the source; None if that is not known.

    Args:
        student: its folder.
        splits: "train" for the examples that it was trained on, "validation" for those that it was selected by.
    """
    file = Path(student) / SEEN
    if not file.is_file():
        return None
    with np.load(file) as ids:
        return np.isin(encode_ids(examples["id"].to_list()), np.concatenate([ids[split] for split in splits]))


def unseen_by(student: str | Path, examples: pd.DataFrame, source: str) -> tuple[pd.DataFrame, int | None]:
    """The examples that a student has not seen, and how many it has; all of them and None if that is not known.

    Args:
        student: its folder.
        source: what messages call the examples.

    Raises:
        CotdError: it has seen all of them.
    """
    seen = was_seen(student, examples)
    if seen is None:
        return examples, None
    if seen.all():
        raise CotdError(
            f"{source}: the student was trained on or selected by all {len(examples):,} examples, and would be scored on what it "
            "knows. Score it on another split or source."
        )
    return examples[~seen].reset_index(drop=True), int(seen.sum())
