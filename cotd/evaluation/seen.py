"""Which examples a student has seen, so that it is not scored on what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cotd.data.table import encode_ids
from cotd.errors import CotdError
from cotd.progress import say
from cotd.students.seen import SPLITS_SEEN, Seen, seen_by, united


def seen_in_training(train: pd.DataFrame, validation: pd.DataFrame, base: str) -> Seen:
    """What a student has seen that is trained on some examples and selected by others.

    Args:
        base: its base model, which may be a student that has seen examples itself.
    """
    ids = {name: encode_ids(rows["id"].to_list()) for name, rows in zip(SPLITS_SEEN, (train, validation), strict=True)}
    return united(ids, seen_by(base))


def was_seen(student: str | Path, examples: pd.DataFrame, splits: tuple[str, ...] = SPLITS_SEEN) -> np.ndarray | None:
    """(N,) whether a student has seen each example, whatever the source; None if that is not known.

    Args:
        student: by any name, see `resolve_model`.
        splits: "train" for the examples that it was trained on, "validation" for those that it was selected by.
    """
    if (ids := seen_by(student)) is None:
        return None
    return np.isin(encode_ids(examples["id"].to_list()), np.concatenate([ids[split] for split in splits]))


def unseen_by(student: str | Path, examples: pd.DataFrame, source: str) -> tuple[pd.DataFrame, int | None]:
    """The examples that a student has not seen, and how many it has, which is said; all and None if that is not known.

    Args:
        student: as of `was_seen`.
        source: what messages call the examples.

    Raises:
        CotdError: it has seen all of them.
    """
    seen = was_seen(student, examples)
    if seen is None:
        say(f"  note: the student came without a record of what it was trained on, which may hold examples of {source}")
        return examples, None
    if seen.all():
        raise CotdError(
            f"{source}: the student was trained on or selected by all {len(examples):,} examples, and would be scored on what it "
            "knows. Score it on another split or source."
        )
    if seen.any():
        say(f"  {seen.sum():,} of {len(examples):,} examples are left out: the student was trained on or selected by them")
    return examples[~seen].reset_index(drop=True), int(seen.sum())


def seen_problems(models: Mapping[str, str], examples: pd.DataFrame) -> list[str]:
    """Problems of base models and teachers that are students, and have seen what a study tests or selects on.

    Args:
        models: the key that names a model → the model.
        examples: the study's examples, of which the columns id and split are read.
    """
    problems = []
    for key, model in models.items():
        if seen_by(model) is None:
            continue
        for split, kinds in (("test", SPLITS_SEEN), ("validation", ("train",))):
            rows = examples[examples["split"] == split]
            seen = was_seen(model, rows, kinds)
            if seen is not None and seen.any():
                problems.append(
                    f"{key}: '{model}' was trained on {seen.sum():,} of the study's {len(rows):,} {split} examples, and its "
                    "students would be scored on what they know. Split the data as its own study does, or name another model."
                )
                break
    return problems
