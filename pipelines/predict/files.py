"""Files of rows with columns of any kind, read and written a block at a time: Parquet, CSV, TSV, and JSON lines."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cotd.errors import CotdError
from cotd.utils.files import replacing
from cotd.utils.jsonl import parse_row

FILE_TYPES = (".parquet", ".jsonl", ".csv", ".tsv")
LONGEST_ROW = 16 * 2**20  # bytes of a CSV row or a line of JSON
# The column of JSON lines as they are: no schema would hold them all, and none may change what it does not understand.
LINE = "__line__"


def csv_options(source: str) -> dict[str, Any]:
    """How Arrow reads a CSV file, whose cells stay the strings that they are (007 is not 7), or JSON lines, in `LINE`."""
    blocks = {"block_size": LONGEST_ROW, "use_threads": False}  # a row must fit into a block
    if source.endswith(".jsonl"):
        # As a table of one column, whose delimiter no JSON may hold. `ray.data.read_text` breaks lines where JSON has
        # none, at U+2028 for one, and reads the file as a whole.
        return {
            "read_options": pa.csv.ReadOptions(column_names=[LINE], **blocks),
            "parse_options": pa.csv.ParseOptions(delimiter="\x1f", quote_char=False),
            "convert_options": pa.csv.ConvertOptions(column_types={LINE: pa.string()}),
        }
    return {
        "read_options": pa.csv.ReadOptions(**blocks),
        "parse_options": pa.csv.ParseOptions(delimiter=delimiter(source), newlines_in_values=True),
        "convert_options": pa.csv.ConvertOptions(column_types=dict.fromkeys(column_names(source), pa.string())),
    }


def delimiter(source: str | Path) -> str:
    """What stands between the cells of a CSV or TSV file."""
    return "\t" if str(source).endswith(".tsv") else ","


def read_blocks(source: str, rows: int) -> Iterator[pa.Table]:
    """The file in this process, at most so many rows at a time.

    Raises:
        CotdError: it cannot be read to its end.
    """
    path = str(Path(source).expanduser())
    try:
        if source.endswith(".parquet"):
            with pa.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(rows):
                    yield pa.Table.from_batches([batch])
            return
        with pa.csv.open_csv(path, **csv_options(source)) as reader:
            for batch in reader:
                for start in range(0, len(batch), rows):
                    yield pa.Table.from_batches([batch.slice(start, rows)])
    except (OSError, pa.ArrowException) as error:
        raise CotdError(f"cannot read '{source}': {error}") from error


@contextlib.contextmanager
def row_writer(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends rows to a Parquet, CSV or JSON-lines file, which is put in place at the end of the block.

    Rows that came as lines of JSON get back the columns they had. Without rows the file is empty.
    """
    writer: Any = None
    schema: pa.Schema | None = None

    def write(table: pa.Table) -> None:
        nonlocal writer, schema
        if path.suffix == ".jsonl":
            writer = writer or LinesWriter(temporary)
        elif LINE in table.column_names:
            table = pa.Table.from_pylist([plain_row(row) for row in table.to_pylist()])
        if writer is None:
            if not len(table):
                return  # its columns may have no type yet
            schema = table.schema
            if path.suffix == ".parquet":
                writer = pa.parquet.ParquetWriter(temporary, schema)
            else:
                writer = pa.csv.CSVWriter(temporary, schema, write_options=pa.csv.WriteOptions(delimiter=delimiter(path)))
        writer.write(table.cast(schema) if schema and len(table) else table)

    with replacing(path) as temporary:
        try:
            yield write
        finally:
            if writer:
                writer.close()
        temporary.touch()


class LinesWriter:
    """JSON, a line a row."""

    def __init__(self, path: Path):
        self.file = path.open("w", encoding="utf-8")

    def write(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            self.file.write(json.dumps(plain_row(row), ensure_ascii=False, default=str) + "\n")

    def close(self) -> None:
        self.file.close()


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the columns of the JSON line that it came from, if any; a line that is not an object stays a string."""
    if LINE not in row:
        return row
    line = row.pop(LINE)
    parsed = parse_row(line)
    return ({"line": line} if parsed is None else parsed) | row


def column_names(source: str) -> list[str]:
    """The file's columns: of JSON lines, those of the first.

    Raises:
        CotdError: it is not there, of another type, or cannot be read.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise CotdError(f"no file '{source}' (looked in {path.absolute().parent}).")
    try:
        if path.suffix == ".parquet":
            return list(pa.parquet.read_schema(path).names)
        if path.suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                return next(csv.reader(file, delimiter=delimiter(path)), [])
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as file:
                return list(json.loads(file.readline() or "{}"))
    except (OSError, ValueError, TypeError, csv.Error) as error:  # ArrowInvalid and JSON's errors are ValueErrors
        raise CotdError(f"cannot read '{source}': {error}") from error
    raise CotdError(f"'{source}' is not a {', '.join(FILE_TYPES)} file.")


def count_rows(source: str) -> int:
    """The number of rows of a file, at least one; of lines for text files, which is good enough for a progress bar."""
    path = Path(source).expanduser()
    if path.suffix == ".parquet":
        return max(1, int(pa.parquet.read_metadata(path).num_rows))
    with path.open("rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    return max(1, lines - (path.suffix in (".csv", ".tsv")))
