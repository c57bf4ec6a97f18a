"""Files of rows: Parquet, JSON lines and CSV, read a block at a time; one bad row costs no other."""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cotd.errors import CotdError
from cotd.progress import say
from cotd.utils.iteration import batched
from cotd.utils.jsonl import parse_row

FILE_TYPES = (".parquet", ".jsonl", ".csv")
# Columns of rows that cannot be used: why, and the line as it is; None in all other rows.
PROBLEM, LINE = "cotd.problem", "cotd.line"
BLOCK = 1024  # rows in memory at once: 100 MB with texts of 100,000 characters
BUFFER = 2**20  # bytes of a Parquet column read at once
NOT_AN_OBJECT = "the line is not a JSON object"
# From this fraction of the lines on, bytes that are not UTF-8 mean another encoding.
MAX_INVALID = 0.05
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_file(path: str) -> Iterator[pd.DataFrame]:
    """A file in blocks, at least one; text columns are kept as they are written.

    Yields:
        The file's columns (of JSON lines: those in the block), and `PROBLEM` and `LINE` if the block has bad rows: lines
        that are not JSON objects, CSV rows with too few or too many cells. Bytes that are not UTF-8 become U+FFFD.

    Raises:
        CotdError: the file does not exist, has another type, or cannot be read as what its name says.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise CotdError(f"no file '{path}' (looked in {file.absolute().parent}).")
    if not path.endswith(FILE_TYPES):
        raise CotdError(f"'{path}' is not a {', '.join(FILE_TYPES)} file.")
    try:
        if path.endswith(".parquet"):
            yield from read_parquet(file)
        elif path.endswith(".jsonl"):
            yield from read_json_lines(text_lines(file, newline="\n"))  # JSON strings may hold U+2028 and its like
        else:
            yield from read_csv(text_lines(file, newline=""))
    except (ValueError, OSError, csv.Error) as error:  # ArrowInvalid is a ValueError
        raise CotdError(f"cannot read '{path}': {error}") from error


def read_parquet(path: Path) -> Iterator[pd.DataFrame]:
    """A Parquet file in blocks, at least one."""
    with pq.ParquetFile(path, buffer_size=BUFFER) as file:
        blocks = (pa.Table.from_batches([batch]) for batch in file.iter_batches(BLOCK))
        first = next(blocks, file.schema_arrow.empty_table())
        yield from map(to_pandas, itertools.chain([first], blocks))


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """A table whose integers stay integers, also in a block where some are missing."""
    return table.to_pandas(integer_object_nulls=True)


def text_lines(file: Path, newline: str) -> Iterator[str]:
    """A file's lines with their ends, `newline` as in `open`. Bytes that are not UTF-8 become U+FFFD.

    Raises:
        ValueError: the file is in another encoding, which may be known only after the last line.
    """
    with file.open("rb") as binary:
        if binary.read(2) in UTF_16_MARKS:
            raise ValueError("it is in UTF-16. Save it as UTF-8.")
    number = 0
    bad: list[int] = []
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.encode()
                yield line
            except UnicodeEncodeError:
                bad.append(number)
                yield line.encode(errors="surrogateescape").decode(errors="replace")
    if len(bad) > max(1, MAX_INVALID * number):
        raise ValueError(f"{len(bad):,} of its {number:,} lines are not UTF-8, first line {bad[0]:,}. Save it as UTF-8.")
    if bad:
        say(f"  warning: {len(bad):,} lines of {file} are not UTF-8 (line {bad[0]:,}); bad bytes are replaced by U+FFFD")


def read_json_lines(lines: Iterable[str]) -> Iterator[pd.DataFrame]:
    """Blocks of JSON objects, one a line; empty lines are skipped.

    Raises:
        ValueError: no line is a JSON object.
    """
    total = good = 0
    for block in batched((line for line in lines if line.strip()), BLOCK):
        rows = [parse_row(line) for line in block]
        total += len(rows)
        good += len(rows) - rows.count(None)
        bad = ({PROBLEM: NOT_AN_OBJECT, LINE: line.strip()} for line in block)
        yield pd.DataFrame([b if row is None else row for row, b in zip(rows, bad, strict=True)], dtype=object)
    if not good:
        raise ValueError(f"none of its {total:,} lines is a JSON object.")


def text_problem(value: Any) -> str | None:
    """Why a cell cannot be used as a text, or None."""
    if value is None:
        return "no text"
    if not isinstance(value, str):
        return f"the text is a {type(value).__name__}, not a string"
    return None if value.strip() else "empty text"


def read_csv(lines: Iterable[str]) -> Iterator[pd.DataFrame]:
    """Blocks of CSV rows under a header, at least one; empty cells are None, all others strings, and empty lines are skipped.

    Not pandas' reader: it takes a first row of too many cells for an index, and shifts all others.

    Raises:
        ValueError: there is no header, or a quote is never closed, after which rows cannot be distinguished.
    """
    csv.field_size_limit(sys.maxsize)  # characters of a cell; else 131,072
    row_lines: list[str] = []  # of the row that is being read

    def noted() -> Iterator[str]:
        for line in lines:
            row_lines.append(line)
            yield line

    reader = csv.reader(noted())
    header = next((row for row in reader if row), None)
    if header is None:
        raise ValueError("it is empty.")
    row_lines.clear()

    def rows() -> Iterator[list[str | None]]:
        """For each row its cells, the problem with it, and its line."""
        for row in reader:
            text = "".join(row_lines)
            if len(row_lines) > 1 and text.count('"') % 2:
                raise ValueError(f"a quote in line {reader.line_num - len(row_lines) + 1:,} is never closed.")
            row_lines.clear()
            if len(row) == len(header):
                yield [*(cell or None for cell in row), None, None]
            elif row:
                problem = f"{len(row)} cells, but the header has {len(header)}"
                yield [*([None] * len(header)), problem, text.strip()]

    names = [*header, PROBLEM, LINE]
    positions = {name: names.index(name) for name in names}  # of columns with the same name the first counts
    blocks = batched(rows(), BLOCK)
    for block in itertools.chain([next(blocks, [])], blocks):
        frame = pd.DataFrame({name: [row[i] for row in block] for name, i in positions.items()}, dtype=object)
        yield frame if frame[PROBLEM].notna().any() else frame.drop(columns=[PROBLEM, LINE])
