"""A student's answers to its validation examples, kept beside its weights: a cascade's threshold is chosen by them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from cotd.students.base_models import VALIDATED


class Validated(NamedTuple):
    """A student's answers to its validation examples.

    Attributes:
        ids: (N,) uint64, see `cotd.data.table.encode_ids`: of a text, whatever the study.
        confidence: (N,) probability of each answer.
        right: (N,) whether it is the gold answer.
    """

    ids: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


def read_validated(folder: str | Path) -> Validated | None:
    """The record in a student's folder; None if there is none, as its answers are free and have no confidence."""
    file = Path(folder) / VALIDATED
    if not file.is_file():
        return None
    with np.load(file) as arrays:
        return Validated(**arrays)


def write_validated(validated: Validated | None, folder: str | Path) -> None:
    """Writes a record, if there is one, into a student's folder."""
    if validated is not None:
        np.savez(Path(folder) / VALIDATED, **validated._asdict())
