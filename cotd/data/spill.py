"""Texts and rows that wait on disk, in unnamed files: nothing of them is left, whatever ends the process."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cotd.errors import CotdError
from cotd.utils.memory import release_memory

# Rows in memory at once: as dictionaries, as Arrow columns before they are written, and sorted.
PACKED_AT, WRITTEN_AT, ROWS_A_BUCKET = 4096, 32_768, 16_384
MAX_BUCKETS = 256
HASHES_A_BUCKET = 131_072  # records of some tens of bytes


def open_spill_file(spill_dir: Path | None = None) -> IO[bytes]:
    """A new file without a name.

    Args:
        spill_dir: a folder on whose disk the file is to be, which need not exist. The system's own place may be in memory.
    """
    for folder in (spill_dir, *spill_dir.parents) if spill_dir else ():
        if folder.is_dir():
            with contextlib.suppress(OSError):  # not writable
                return tempfile.TemporaryFile(dir=folder)
    return tempfile.TemporaryFile()


class SpillFile:
    """Bytes, added at the end and read anywhere.

    Args:
        spill_dir: see `open_spill_file`.
    """

    def __init__(self, spill_dir: Path | None = None):
        self._file = open_spill_file(spill_dir)
        self.spill_dir = spill_dir
        self.size = 0

    def add(self, content: bytes | pa.Buffer) -> None:
        """Appends bytes.

        Raises:
            CotdError: the disk is full.
        """
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            where = self.spill_dir or tempfile.gettempdir()
            raise CotdError(f"cannot keep rows on the disk of {where}: {error}. Make room there, and run again.") from error
        self.size += len(content)

    def read(self, start: int, size: int) -> bytes:
        """The bytes from `start` on."""
        return os.pread(self._file.fileno(), size, start) if size else b""


class Column:
    """Numbers, or records of them, that are added at the end and read anywhere: none are in memory.

    Args:
        dtype: of one.
        spill_dir: see `open_spill_file`.
    """

    def __init__(self, dtype: np.dtype | str, spill_dir: Path | None = None):
        self.dtype = np.dtype(dtype)
        self._file = SpillFile(spill_dir)

    def add(self, values: np.ndarray) -> None:
        """Appends values."""
        self._file.add(np.ascontiguousarray(values, dtype=self.dtype).tobytes())

    def __len__(self) -> int:
        return self._file.size // self.dtype.itemsize

    def read(self, start: int, stop: int) -> np.ndarray:
        """The values from `start` to before `stop`."""
        size = self.dtype.itemsize
        return np.frombuffer(self._file.read(start * size, (min(stop, len(self)) - start) * size), dtype=self.dtype)

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(position of the first, values) of some tens of thousands at a time."""
        for start in range(0, len(self), WRITTEN_AT):
            yield start, self.read(start, start + WRITTEN_AT)

    def buckets(self, key: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(positions, records) of a hundred thousand at a time, such that those with the same key are together.

        Args:
            key: the field of the records, hashes of 64 bits, by which they are divided, in ascending order.
        """
        bits = bucket_bits(len(self))
        for bucket in range(2**bits):
            positions, records = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=self.dtype)]
            for start, chunk in self.chunks():
                chosen = in_bucket(chunk[key], bucket, bits)
                positions.append(start + chosen)
                records.append(chunk[chosen])
            yield np.concatenate(positions), np.concatenate(records)


def bucket_bits(hashes: int) -> int:
    """By how many of their first bits so many hashes are divided into buckets."""
    return (hashes // HASHES_A_BUCKET).bit_length()


def in_bucket(hashes: np.ndarray, bucket: int, bits: int) -> np.ndarray:
    """The positions of the hashes, of 64 bits, that begin with `bucket`, a number of so many bits."""
    return np.flatnonzero(hashes >> np.uint64(64 - bits) == bucket) if bits else np.arange(len(hashes))


def in_buckets(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Positions of a hundred thousand hashes at a time, in ascending order of their first bits."""
    bits = bucket_bits(len(hashes))
    for bucket in range(2**bits):
        starts = range(0, len(hashes), WRITTEN_AT)
        parts = [start + in_bucket(hashes[start : start + WRITTEN_AT], bucket, bits) for start in starts]
        yield np.concatenate([np.empty(0, dtype=np.int64), *parts])


class TextFile(Sequence[str]):
    """Texts by number, in the order in which they were added."""

    def __init__(self, spill_dir: Path | None = None):
        self.spill_dir = spill_dir
        self._file = SpillFile(spill_dir)
        self._ends = Column("int64", spill_dir)

    def add(self, texts: Iterable[str]) -> None:
        """Appends texts."""
        contents = [text.encode(errors="surrogatepass") for text in texts]
        self._ends.add(self._file.size + np.cumsum([len(content) for content in contents], dtype=np.int64))
        self._file.add(b"".join(contents))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        start, end = self._ends.read(number - 1, number + 1).tolist() if number else (0, int(self._ends.read(0, 1)[0]))
        return self._file.read(start, end - start).decode(errors="surrogatepass")

    def take(self, numbers: np.ndarray) -> list[str]:
        """Some texts, read in the order in which they are on the disk."""
        texts = [""] * len(numbers)
        for position in np.argsort(numbers, kind="stable").tolist():
            texts[position] = self[int(numbers[position])]
        return texts


class SortedRows:
    """Rows that come in any order and leave sorted, a block at a time, with some tens of thousands of them in memory.

    They are kept in buckets by the first column of `key`, evenly distributed hexadecimal digits as ids are; the rows of one
    id come in one block.

    Args:
        key: columns to sort by; of rows that are equal in all of them, the first counts.
        expected: about how many rows there will be.
        finish: applied to each sorted block.
    """

    def __init__(
        self,
        schema: pa.Schema,
        key: Sequence[str],
        expected: int = 0,
        spill_dir: Path | None = None,
        finish: Callable[[pd.DataFrame], pd.DataFrame] = lambda block: block,
    ):
        self._schema, self._key, self._finish = schema, list(key), finish
        self._buckets = min(MAX_BUCKETS, -(-expected // ROWS_A_BUCKET)) or 1
        self._parts: list[list[tuple[int, int]]] = [[] for _ in range(self._buckets)]  # (start, size) in the file
        self._file = SpillFile(spill_dir)
        self._rows: list[dict[str, Any]] = []
        self._packed: list[pa.RecordBatch] = []

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row."""
        self._rows.append(row)
        if len(self._rows) == PACKED_AT:
            self._pack()
            if sum(map(len, self._packed)) >= WRITTEN_AT:
                self._write()

    def _pack(self) -> None:
        self._packed.append(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def _write(self) -> None:
        rows = pa.Table.from_batches(self._packed, self._schema)
        self._packed = []
        numbers = np.zeros(len(rows), dtype=np.int64)
        if self._buckets > 1:
            leading = [int(i[:8], 16) for i in rows[self._key[0]].to_pylist()]
            numbers = np.array(leading, dtype=np.int64) * self._buckets >> 32
        for bucket in np.unique(numbers).tolist():
            part = rows.take(pa.array(np.flatnonzero(numbers == bucket))).combine_chunks()
            for batch in part.to_batches():
                content = batch.serialize()
                self._parts[bucket].append((self._file.size, len(content)))
                self._file.add(content)

    def blocks(self) -> Iterator[pd.DataFrame]:
        """The rows, sorted; anew at each call."""
        if self._rows or self._packed:
            self._pack()
            self._write()
        for parts in filter(None, self._parts):
            contents = (self._file.read(start, size) for start, size in parts)
            batches = [pa.ipc.read_record_batch(pa.py_buffer(content), self._schema) for content in contents]
            rows = pa.Table.from_batches(batches, self._schema)
            block = rows.take(pc.sort_indices(rows, [(column, "ascending") for column in self._key])).to_pandas()
            del batches, rows
            repeated = block.duplicated(self._key)
            yield self._finish(block[~repeated].reset_index(drop=True) if repeated.any() else block)
            del block
            release_memory()

    def table(self) -> pd.DataFrame:
        """All rows, sorted, in memory."""
        blocks = list(self.blocks()) or [self._schema.empty_table().to_pandas()]
        return pd.concat(blocks, ignore_index=True)
