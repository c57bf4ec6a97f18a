"""Which examples a student has seen: their ids lie beside it, so that it is not scored on what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cotd.data.table import encode_ids
from cotd.errors import CotdError
from cotd.progress import say
from cotd.students.base_models import resolve_model

SEEN = "examples_seen.npz"
SPLITS_SEEN = ("train", "validation")


def write_seen(student: Path, train: pd.DataFrame, validation: pd.DataFrame, base: str) -> None:
    """Writes the ids of the examples that a student was trained on and selected by into its folder.

    Args:
        base: its base model, which may be a student that has seen examples itself.
    """
    ids = {name: encode_ids(rows["id"].to_list()) for name, rows in zip(SPLITS_SEEN, (train, validation), strict=True)}
    earlier = ids_seen(resolve_model(base)) or ids
    train_ids, validation_ids = (np.union1d(ids[name], earlier[name]) for name in SPLITS_SEEN)
    np.savez(student / SEEN, train=train_ids, validation=validation_ids)


def ids_seen(student: str | Path) -> dict[str, np.ndarray] | None:
    """The ids of the examples that the student in a folder was trained on ("train") and selected by ("validation").

    None if that is not known: it is a base model, or came without them.
    """
    file = Path(student) / SEEN
    if not file.is_file():
        return None
    with np.load(file) as ids:
        return {name: ids[name] for name in SPLITS_SEEN}


def was_seen(student: str | Path, examples: pd.DataFrame, splits: tuple[str, ...] = SPLITS_SEEN) -> np.ndarray | None:
    """(N,) whether a student has seen each example, whatever the source; None if that is not known.

    Args:
        student: its folder.
        splits: "train" for the examples that it was trained on, "validation" for those that it was selected by.
    """
    if (ids := ids_seen(student)) is None:
        return None
    return np.isin(encode_ids(examples["id"].to_list()), np.concatenate([ids[split] for split in splits]))


def unseen_by(student: str | Path, examples: pd.DataFrame, source: str) -> tuple[pd.DataFrame, int | None]:
    """The examples that a student has not seen, and how many it has, which is said; all and None if that is not known.

    Args:
        student: its folder.
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


def seen_problems(sizes: Mapping[str, str], examples: Path) -> list[str]:
    """Problems of base models that are students, and have seen what a study tests or selects on.

    Args:
        sizes: size → base model.
        examples: the study's examples, a Parquet file.
    """
    problems = []
    for size, model in sizes.items():
        if ids_seen(folder := resolve_model(model)) is None:
            continue
        table = pd.read_parquet(examples, columns=["id", "split"])
        for split, kinds in (("test", SPLITS_SEEN), ("validation", ("train",))):
            rows = table[table["split"] == split]
            seen = was_seen(folder, rows, kinds)
            if seen is not None and seen.any():
                problems.append(
                    f"sizes.{size}: '{model}' was trained on {seen.sum():,} of the study's {len(rows):,} {split} examples, and its "
                    "students would be scored on what they know. Split the data as its own study does, or name another model."
                )
                break
    return problems
