"""Parquet files, written atomically and both written and read a block of rows at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cotd.utils.files import replacing

ROW_GROUP, MIN_ROW_GROUP = 65_536, 16_384


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Writes a table a block of rows at a time: the whole of it in another form would double its memory."""
    blocks = (table.iloc[start : start + ROW_GROUP] for start in range(0, len(table), ROW_GROUP))
    write_blocks(blocks, path, pa.Schema.from_pandas(table, preserve_index=False))


def write_blocks(blocks: Iterable[pd.DataFrame], path: Path, schema: pa.Schema) -> None:
    """Writes rows as they come, in row groups of at least some thousand."""
    with parquet_writer(path, schema) as write:
        waiting: list[pd.DataFrame] = []
        for block in blocks:
            waiting.append(block)
            if sum(map(len, waiting)) >= MIN_ROW_GROUP:
                write(pd.concat(waiting, ignore_index=True))
                waiting = []
        if waiting:
            write(pd.concat(waiting, ignore_index=True))


@contextlib.contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pd.DataFrame], None]]:
    """A function that writes rows to a file, which is put in place at the end of the block."""
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        yield lambda rows: writer.write_table(pa.Table.from_pandas(rows, schema=schema, preserve_index=False))


def read_blocks(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    """Some columns of a file, some thousand rows at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=columns):
            yield batch.to_pandas()
