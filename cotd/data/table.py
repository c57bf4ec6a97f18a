"""Examples in an order, with their texts on disk: some 20 bytes of memory each, however long they are."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa

from cotd.data.config import SPLITS
from cotd.data.files import BLOCK
from cotd.data.spill import TextFile, in_buckets

NONE = -1  # the code of no label or no split, the position of no row


def encode_ids(ids: Sequence[str]) -> np.ndarray:
    """Ids of 16 hexadecimal digits as numbers, (N,) uint64."""
    return np.frombuffer(bytes.fromhex("".join(ids)), dtype=">u8").astype(np.uint64)


def decode_ids(ids: np.ndarray) -> list[str]:
    """The ids that `encode_ids` was given."""
    digits = ids.astype(">u8").tobytes().hex()
    return [digits[i : i + 16] for i in range(0, len(digits), 16)]


def encode(names: Sequence[str], values: Sequence[str | None]) -> np.ndarray:
    """(N,) int32 codes, which are positions in `names`, or NONE."""
    codes = {None: NONE} | {name: code for code, name in enumerate(names)}
    return np.array([codes[v] for v in values], dtype=np.int32)


def decode(names: Sequence[str], codes: np.ndarray) -> np.ndarray:
    """(N,) names, or None."""
    return np.array([*names, None], dtype=object)[codes]  # NONE is the last


def in_blocks(rows: int) -> Iterator[slice]:
    """Slices of at most BLOCK rows, at least one."""
    return (slice(start, start + BLOCK) for start in range(0, max(1, rows), BLOCK))


def text_frame(columns: Mapping[str, Sequence[str]], **names: np.ndarray) -> pd.DataFrame:
    """Columns of texts, and of names that may be None."""
    return pd.DataFrame(columns, dtype="str").assign(**{key: pd.Series(v, dtype=object) for key, v in names.items()})


@dataclass(frozen=True, eq=False)
class ExampleTable:
    """Some examples.

    Attributes:
        ids: (N,) uint64, see `encode_ids`, without repeats.
        labels: (N,) int32, codes in `names`, or NONE.
        splits: (N,) int8, codes in SPLITS.
        numbers: (N,) positions in `texts`, which may hold others, without repeats.
        names: the task's labels; where it has no fixed ones, every answer that any row has.
        choices: each row's own options as a JSON list, by the same positions; None if the task has the same for all.
        groups: each row's group, by the same positions, empty where it has none; None if no row has one.
    """

    ids: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    numbers: np.ndarray
    texts: TextFile
    names: tuple[str, ...]
    choices: TextFile | None = None
    groups: TextFile | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray | slice) -> ExampleTable:
        """The examples at some positions, or where a mask is true, in that order."""
        columns = (self.ids[rows], self.labels[rows], self.splits[rows], self.numbers[rows])
        return ExampleTable(*columns, self.texts, self.names, self.choices, self.groups)

    def split(self, name: str) -> ExampleTable:
        """The examples of one split."""
        return self.take(self.splits == SPLITS.index(name))

    def blocks(self) -> Iterator[pd.DataFrame]:
        """The examples with columns `id`, `text`, `choices` if they have their own, `label`, `split`, and `group` if any has one.

        A thousand at a time; there is at least one block.
        """
        for block in map(self.take, in_blocks(len(self))):
            columns = {"id": decode_ids(block.ids), "text": self.texts.take(block.numbers)}
            frame = text_frame(columns, label=block.label_names(), split=decode(SPLITS, block.splits))
            if self.choices is not None:
                frame.insert(2, "choices", pd.Series(list(block.own_choices()), dtype=object))
            if (groups := block.group_names()) is not None:
                frame["group"] = pd.Series(groups, dtype=object)
            yield frame

    @property
    def schema(self) -> pa.Schema:
        """The schema of `blocks`."""
        row = text_frame({"id": ["i"], "text": ["t"]}, label=np.array(["l"]), split=np.array([SPLITS[0]]))
        if self.choices is not None:
            row.insert(2, "choices", pd.Series([["o"]], dtype=object))
        if self.groups is not None:
            row["group"] = pd.Series(["g"], dtype=object)
        if (self.labels == NONE).all():
            row["label"] = None
        return pa.Schema.from_pandas(row, preserve_index=False)

    def frame(self) -> pd.DataFrame:
        """All of them in memory."""
        return pd.concat(self.blocks(), ignore_index=True)

    def texts_by_number(self) -> Iterator[tuple[int, str, str]]:
        """(number, id, text) of each example; a thousand are in memory at once."""
        for block in map(self.take, in_blocks(len(self))):
            yield from zip(block.numbers.tolist(), decode_ids(block.ids), self.texts.take(block.numbers), strict=True)

    def own_choices(self) -> Iterator[list[str] | None]:
        """Each example's own options; None where the task has the same for all."""
        if self.choices is None:
            yield from [None] * len(self)
            return
        for rows in in_blocks(len(self)):
            yield from map(json.loads, self.choices.take(self.numbers[rows]))

    def decode_ids(self) -> Iterator[str]:
        """Each example's id."""
        for rows in in_blocks(len(self)):
            yield from decode_ids(self.ids[rows])

    def label(self, position: int) -> str | None:
        """One example's label."""
        return (*self.names, None)[self.labels[position]]

    def label_names(self) -> np.ndarray:
        """(N,) labels, or None."""
        return decode(self.names, self.labels)

    def group_names(self) -> list[str | None] | None:
        """Each example's group, or None; None if no row of the source has one."""
        return None if self.groups is None else [name or None for name in self.groups.take(self.numbers)]

    def label_counts(self) -> dict[str, int]:
        """Label → examples that have it, of the labels that any has."""
        labels, counts = np.unique(self.labels[self.labels != NONE], return_counts=True)
        return {self.names[label]: int(count) for label, count in zip(labels, counts, strict=True)}

    def positions(self, ids: Sequence[str]) -> np.ndarray:
        """(N,) the positions of the examples with these ids, or NONE."""
        if not len(self):
            return np.full(len(ids), NONE)
        encoded = encode_ids(ids)
        nearest = self._by_id[np.minimum(np.searchsorted(self.ids, encoded, sorter=self._by_id), len(self) - 1)]
        return np.where(self.ids[nearest] == encoded, nearest, NONE)

    def gold(self, ids: Sequence[str]) -> pd.Series:
        """The gold labels of the examples with these ids, by id; without those that have none."""
        ids = list(dict.fromkeys(ids))
        labels = np.append(self.labels, np.int32(NONE))[self.positions(ids)]  # position NONE is the last
        return pd.Series(decode(self.names, labels), index=pd.Index(ids, dtype=object), dtype=object).dropna()

    @cached_property
    def _by_id(self) -> np.ndarray:
        return np.argsort(self.ids)

    @cached_property
    def digest(self) -> str:
        """Content digest: changes when any text, option, label, split or group does, and not with the order of rows."""
        content = hashlib.sha256()
        for rows in in_buckets(self.ids):
            for block in self.take(rows[np.argsort(self.ids[rows])]).blocks():
                for row in zip(*(block[column].tolist() for column in block), strict=True):
                    content.update(json.dumps(row).encode() + b"\n")
        return content.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class QuarantinedRows:
    """The rows of a source that are not among its examples, and why.

    Attributes:
        labels, splits, numbers, texts, names: as in `ExampleTable`, but that a row may have no split.
        reasons: (N,) positions in `reason_names`.
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
        for rows in in_blocks(len(self)):
            labels, splits = decode(self.names, self.labels[rows]), decode(SPLITS, self.splits[rows])
            reasons = decode(self.reason_names, self.reasons[rows])
            yield text_frame({"text": self.texts.take(self.numbers[rows])}, label=labels, split=splits, reason=reasons)

    def frame(self) -> pd.DataFrame:
        """All of them in memory."""
        return pd.concat(self.blocks(), ignore_index=True)

    def counts(self) -> Counter[str]:
        """Reason → rows, in the order in which they first occur."""
        reasons, first, counts = np.unique(self.reasons, return_index=True, return_counts=True)
        return Counter({self.reason_names[reasons[k]]: int(counts[k]) for k in np.argsort(first)})
