"""Files of rows with columns of any kind, read by the one reader of examples, and written a block at a time.

Rows pass as Arrow tables: of Parquet with its columns, of CSV with strings, of JSON with each row as it is written, since no
schema would hold them all. PROBLEM says why a row of text cannot be used.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cotd.data.delimited import Delimited
from cotd.data.files import (
    LINE,
    NOT_AN_OBJECT,
    PROBLEM,
    delimiter_of,
    file_type,
    find_files,
    json_rows,
    readable,
    text_lines,
)
from cotd.errors import CotdError
from cotd.progress import say
from cotd.utils.files import replacing
from cotd.utils.iteration import batched
from cotd.utils.jsonl import parse_row

FILE_TYPES = (".parquet", ".jsonl", ".csv", ".tsv")  # that are written
BLOCK = 1024  # rows of text in memory at once
RAW = pa.schema({PROBLEM: pa.string(), LINE: pa.string()})
BAD_LINE = "line"  # the column of lines that cannot be read, in what is written


@dataclass(frozen=True)
class Table:
    """What is known of a source's rows before they are read for good.

    Attributes:
        source: as it was named.
        files: those that it stands for.
        schema: of the columns that any row has.
        rows: how many there are.
        damaged: whether any cannot be read.
    """

    source: str
    files: list[str]
    schema: pa.Schema
    rows: int
    damaged: bool


def scan(source: str) -> Table:
    """Looks through a file, folder, pattern or URL: a column may first occur in the last line, and a bad byte, too.

    Raises:
        CotdError: it does not exist, has no rows, or cannot be read to its end.
    """
    files = find_files(source)
    schema, rows, damaged = pa.schema([]), 0, False
    for file in files:
        if file_type(file) == ".parquet":
            with readable(file) as binary, pq.ParquetFile(binary) as parquet:
                own, count = parquet.schema_arrow.remove_metadata(), parquet.metadata.num_rows
            schema, rows = merged(schema, own), rows + count
            continue
        for table in read_text(file, say):
            schema, rows = merged(schema, described(table)), rows + len(table)
            damaged = damaged or table[PROBLEM].null_count < len(table)
    if not rows:
        raise CotdError(f"'{source}' has no rows.")
    if not schema.names:
        raise CotdError(f"'{source}': none of its {rows:,} lines is a JSON object.")
    return Table(source, files, schema, rows, damaged)


def described(table: pa.Table) -> pa.Schema:
    """The columns that a block of text stands for; of one that has values of several kinds, strings."""
    if table.schema.names != RAW.names:
        return pa.schema([field for field in table.schema if field.name not in RAW.names])
    cells: dict[str, list[Any]] = {}
    for row in filter(None, map(parse_row, table[LINE].to_pylist())):
        for name, value in row.items():
            cells.setdefault(name, []).append(value)
    return pa.schema({name: kind_of(values) for name, values in cells.items()})


def kind_of(values: list[Any]) -> pa.DataType:
    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return pa.string()


def merged(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    """The columns of both."""
    fields = {field.name: field for field in one}
    for field in other:
        known = fields.get(field.name, field)
        try:
            (fields[field.name],) = pa.unify_schemas([pa.schema([known]), pa.schema([field])], promote_options="permissive")
        except pa.ArrowException:
            fields[field.name] = pa.field(field.name, pa.string())
    return pa.schema(list(fields.values()))


def read_tables(path: str, rows: int) -> Iterator[pa.Table]:
    """One of a source's files in this process, at most so many rows at a time.

    Raises:
        CotdError: it cannot be read to its end.
    """
    if file_type(path) == ".parquet":
        with readable(path) as binary, pq.ParquetFile(binary) as file:
            for batch in file.iter_batches(rows):
                yield pa.Table.from_batches([batch])
        return
    for table in read_text(path):
        for start in range(0, len(table), rows):
            yield table.slice(start, rows)


def read_text(path: str, warn: Callable[[str], None] = lambda _: None) -> Iterator[pa.Table]:
    """A file of text in blocks."""
    with readable(path) as binary:
        if file_type(path) in (".json", ".jsonl"):
            for block in batched(json_rows(binary, path, warn), BLOCK):
                problems = [None if row is not None else NOT_AN_OBJECT for row, _ in block]
                yield pa.table([pa.array(problems, pa.string()), pa.array([line for _, line in block], pa.string())], RAW)
            return
        rows = Delimited(text_lines(binary, path, "", warn), path, delimiter_of(path), warn)
        names = list(dict.fromkeys(rows.header))
        places = [rows.header.index(name) for name in names]  # of columns with the same name the first counts
        schema = pa.schema([*((name, pa.string()) for name in names), *RAW])
        for read in batched(rows, BLOCK):
            columns = [[row[place] for row, _, _ in read] for place in places]
            columns += [[problem for _, problem, _ in read], [line for _, _, line in read]]
            yield pa.table([pa.array(column, pa.string()) for column in columns], schema)


@contextlib.contextmanager
def row_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends rows to a Parquet, CSV or JSON-lines file, which is put in place at the end of the block.

    Args:
        schema: of the columns that any row has. JSON lines have those that each row had when it was read.
    """
    with replacing(path) as temporary:
        writer: Any = None
        if path.suffix == ".jsonl":
            writer = LinesWriter(temporary)
        elif path.suffix == ".parquet":
            writer = pq.ParquetWriter(temporary, schema)
        elif schema.names:
            schema = pa.schema([pa.field(field.name, cell_type(field.type)) for field in schema])
            writer = pa.csv.CSVWriter(temporary, schema, write_options=pa.csv.WriteOptions(delimiter=delimiter_of(path.name)))
        try:
            yield lambda table: writer.write(table if path.suffix == ".jsonl" else conformed(table, schema))
        finally:
            writer.close()


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows with all columns of a schema, and no others."""
    if LINE in table.column_names:
        rows = plain_rows(table)
        return pa.table([cells([row.get(field.name) for row in rows], field.type) for field in schema], schema)
    columns = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        if name not in table.column_names:
            columns.append(pa.nulls(len(table), kind))
        elif kind == pa.string() and not in_cells(table.schema.field(name).type):
            columns.append(cells(table[name].to_pylist(), kind))
        else:
            columns.append(table[name].cast(kind))
    return pa.table(columns, schema)


def cells(values: list[Any], kind: pa.DataType) -> pa.Array:
    """A column; in one of strings, other values are written as JSON."""
    if kind == pa.string():
        values = [v if v is None or isinstance(v, str) else as_text(v) for v in values]
    return pa.array(values, kind)


def as_text(value: Any) -> str:
    """A value as JSON; bytes as the text that they are."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return json.dumps(value, ensure_ascii=False, default=lambda v: as_text(v) if isinstance(v, bytes) else str(v))


def cell_type(kind: pa.DataType) -> pa.DataType:
    """What a column becomes in CSV, whose cells are not nested, and are text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return kind if in_cells(kind) else pa.string()


def in_cells(kind: pa.DataType) -> bool:
    """Whether cells of CSV can hold values of a kind."""
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


class LinesWriter:
    """JSON, a line a row."""

    def __init__(self, path: Path):
        self.file = path.open("w", encoding="utf-8")

    def write(self, table: pa.Table) -> None:
        for row in plain_rows(table):
            self.file.write(as_text(row) + "\n")

    def close(self) -> None:
        self.file.close()


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows with the columns that they had when they were read; a line that cannot be read is in BAD_LINE."""
    rows: list[dict[str, Any]] = table.to_pylist()
    if LINE not in table.column_names:
        return rows
    plain = []
    for row in rows:
        line, problem = row.pop(LINE), row.pop(PROBLEM)
        read = {BAD_LINE: line} if problem else (parse_row(line) or {}) if line is not None else {}
        plain.append(read | row)
    return plain
