"""What a student has seen: the ids of the examples that it was trained on and selected by, which lie beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cotd.errors import CotdError
from cotd.students.base_models import SEEN, hub_commit, resolve_model

# Split → (N,) uint64, the ids of its examples, see `cotd.data.table.encode_ids`.
Seen = Mapping[str, np.ndarray]
SPLITS_SEEN = ("train", "validation")


def read_seen(folder: str | Path) -> Seen | None:
    """The record in a student's folder.

    None if there is none: it is a base model, or came without one.
    """
    file = Path(folder) / SEEN
    if not file.is_file():
        return None
    with np.load(file) as ids:
        return {name: ids[name] for name in SPLITS_SEEN}


def write_seen(seen: Seen | None, folder: str | Path) -> None:
    """Writes a record, if there is one, into a student's folder."""
    if seen is not None:
        np.savez(Path(folder) / SEEN, train=seen["train"], validation=seen["validation"])


def seen_by(source: str | Path) -> Seen | None:
    """The record of a model by any name, see `resolve_model`; None if it is not known what it has seen."""
    folder = resolve_model(str(source))
    if Path(folder).is_dir():
        return read_seen(folder)
    from huggingface_hub import hf_hub_download

    try:
        return read_seen(Path(hf_hub_download(folder, SEEN, revision=hub_commit(folder))).parent)
    except (OSError, ValueError, CotdError):  # it has none, or cannot be reached
        return None


def united(first: Seen, second: Seen | None) -> Seen:
    """Two records as one."""
    return first if second is None else {name: np.union1d(first[name], second[name]) for name in SPLITS_SEEN}
