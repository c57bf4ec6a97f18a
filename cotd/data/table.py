"""Reviews in an order, with their texts on disk: some 20 bytes of memory each, however long they are."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from cotd.data.files import BLOCK
from cotd.data.spill import TextFile

SPLITS = ("train", "validation", "test")
NONE = -1  # stands for no label, or no split, where these are numbers


def encode_ids(ids: Sequence[str]) -> np.ndarray:
    """Ids of 16 hexadecimal digits as numbers, (N,) uint64."""
    return np.frombuffer(bytes.fromhex("".join(ids)), dtype=">u8").astype(np.uint64) if len(ids) else np.empty(0, np.uint64)


def decode_ids(ids: np.ndarray) -> list[str]:
    """What `encode_ids` was given."""
    digits = ids.astype(">u8").tobytes().hex()
    return [digits[i : i + 16] for i in range(0, len(digits), 16)]


def decode(names: Sequence[str], numbers: np.ndarray) -> np.ndarray:
    """(N,) names, or None, of places among `names`."""
    return np.array([*names, None], dtype=object)[numbers]  # NONE is the last


@dataclass(frozen=True, eq=False)
class ExampleTable:
    """Some reviews.

    Attributes:
        ids: (N,) uint64, see `encode_ids`; no two are equal.
        labels: (N,) int8, places in `names`, or NONE. splits: (N,) int8, places in SPLITS.
        numbers: (N,) where their texts are in `texts`, which may hold others; no two are equal.
        names: the task's labels.
    """

    ids: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    numbers: np.ndarray
    texts: TextFile
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: np.ndarray | slice) -> ExampleTable:
        """Those at some places, or where a mask is true, in that order."""
        columns = (self.ids[which], self.labels[which], self.splits[which], self.numbers[which])
        return ExampleTable(*columns, self.texts, self.names)

    def split(self, name: str) -> ExampleTable:
        return self.take(self.splits == SPLITS.index(name))

    def blocks(self) -> Iterator[pd.DataFrame]:
        """The reviews with columns `id`, `text`, `label`, `split`, a thousand at a time, at least one block."""
        for start in range(0, max(1, len(self)), BLOCK):
            rows = self.take(slice(start, start + BLOCK))
            block = pd.DataFrame({"id": decode_ids(rows.ids), "text": self.texts.take(rows.numbers)}, dtype="str")
            block["label"] = pd.Series(rows.label_names(), dtype=object)
            block["split"] = pd.Series(decode(SPLITS, rows.splits), dtype=object)
            yield block

    def frame(self) -> pd.DataFrame:
        """All of them in memory."""
        return pd.concat(self.blocks(), ignore_index=True)

    def texts_by_number(self) -> Iterator[tuple[int, str, str]]:
        """(number, id, text) of each review; a thousand are in memory at once."""
        for start in range(0, len(self), BLOCK):
            numbers, ids = self.numbers[start : start + BLOCK], self.ids[start : start + BLOCK]
            yield from zip(numbers.tolist(), decode_ids(ids), self.texts.take(numbers), strict=True)

    def decode_ids(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            yield from decode_ids(self.ids[start : start + BLOCK])

    def label(self, place: int) -> str | None:
        """One review's label."""
        return (*self.names, None)[self.labels[place]]

    def label_names(self) -> np.ndarray:
        """(N,) labels, or None."""
        return decode(self.names, self.labels)

    def label_counts(self) -> dict[str, int]:
        """Label → reviews that have it, of the labels that any has."""
        found, counts = np.unique(self.labels[self.labels != NONE], return_counts=True)
        return {self.names[label]: int(count) for label, count in zip(found, counts, strict=True)}

    def places(self, ids: Sequence[str]) -> np.ndarray:
        """Where the reviews with these ids are, or NONE."""
        if not len(self):
            return np.full(len(ids), NONE)
        wanted = encode_ids(ids)
        found = self._by_id[np.minimum(np.searchsorted(self.ids, wanted, sorter=self._by_id), len(self) - 1)]
        return np.where(self.ids[found] == wanted, found, NONE)

    def gold(self, ids: Sequence[str]) -> pd.Series:
        """The gold labels of the reviews with these ids, by id: of those that have one."""
        ids = list(dict.fromkeys(ids))
        places = self.places(ids)
        labels = np.where(places == NONE, NONE, self.labels[places] if len(self) else NONE)
        return pd.Series(decode(self.names, labels), index=pd.Index(ids, dtype=object), dtype=object).dropna()

    @cached_property
    def _by_id(self) -> np.ndarray:
        return np.argsort(self.ids)

    def digest(self) -> str:
        """Content digest: changes when any id, label or split does."""
        content = hashlib.sha256()
        for start in range(0, len(self), BLOCK):
            rows = self.take(self._by_id[start : start + BLOCK])
            labels = np.where(rows.labels == NONE, "", rows.label_names())
            lines = map("\t".join, zip(decode_ids(rows.ids), labels, decode(SPLITS, rows.splits), strict=True))
            content.update(("\n" * (start > 0) + "\n".join(lines)).encode())
        return content.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class QuarantinedRows:
    """The rows of a source that are not among its reviews, and why.

    Attributes:
        labels, splits, numbers, texts, names: as of `ExampleTable`. reasons: (N,) places in `reason_names`.
    """

    labels: np.ndarray
    splits: np.ndarray
    numbers: np.ndarray
    reasons: np.ndarray
    texts: TextFile
    names: tuple[str, ...]
    reason_names: list[str]

    def __len__(self) -> int:
        return len(self.numbers)

    def blocks(self) -> Iterator[pd.DataFrame]:
        """The rows with columns `text`, `label`, `split`, `reason`, a thousand at a time, at least one block."""
        for start in range(0, max(1, len(self)), BLOCK):
            rows = slice(start, start + BLOCK)
            block = pd.DataFrame({"text": self.texts.take(self.numbers[rows])}, dtype="str")
            block["label"] = pd.Series(decode(self.names, self.labels[rows]), dtype=object)
            block["split"] = pd.Series(decode(SPLITS, self.splits[rows]), dtype=object)
            block["reason"] = pd.Series(decode(self.reason_names, self.reasons[rows]), dtype=object)
            yield block

    def frame(self) -> pd.DataFrame:
        """All of them in memory."""
        return pd.concat(self.blocks(), ignore_index=True)

    def counts(self) -> Counter[str]:
        """How many rows there are of each reason."""
        reasons, first, counts = np.unique(self.reasons, return_index=True, return_counts=True)
        return Counter({self.reason_names[reasons[k]]: int(counts[k]) for k in np.argsort(first)})
