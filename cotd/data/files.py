"""Files of rows: Parquet, JSON lines and CSV, read a block at a time and so that one bad row costs no other."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cotd.errors import CotdError
from cotd.progress import say
from cotd.utils.iteration import batched

FILE_TYPES = (".parquet", ".jsonl", ".csv")
# Columns of rows that cannot be used: why, and the line as it is; None in all other rows.
PROBLEM, LINE = "cotd.problem", "cotd.line"
BLOCK = 1024  # rows that are in memory at once: of texts of 100,000 characters 100 MB
BUFFER = 2**20  # bytes of a Parquet column that are read at once
NO_OBJECT = "the line is no JSON object"
# From this share of the lines on, bytes that are no UTF-8 are another encoding.
MANY = 0.05
OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_file(path: str) -> Iterator[pd.DataFrame]:
    """A file in blocks, at least one; text columns are kept as they are written.

    Yields:
        The file's columns, of JSON lines those of the block; and `PROBLEM` and `LINE` where some rows of the block are bad:
        lines that are no JSON, CSV rows with too few or too many cells. Bytes that are no UTF-8 become U+FFFD.

    Raises:
        CotdError: there is no such file, it is of another type, or as a whole it is not what its name says.
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
            # Lines end at \n alone: JSON strings may hold U+2028 and its like.
            yield from read_json_lines(text_lines(file, newline="\n"))
        else:
            yield from read_csv(text_lines(file, newline=""))
    except (ValueError, OSError, csv.Error) as error:  # ArrowInvalid is a ValueError
        raise CotdError(f"cannot read '{path}': {error}") from error


def read_parquet(path: Path) -> Iterator[pd.DataFrame]:
    """A Parquet file in blocks. A column of whole numbers some of which are missing is of fractions, as pandas has it, in all."""
    with pq.ParquetFile(path, buffer_size=BUFFER) as file:
        whole = [f.name for f in file.schema_arrow if pa.types.is_integer(f.type) and has_nulls(file, f.name)]
        blocks = (pa.Table.from_batches([batch]) for batch in file.iter_batches(BLOCK))
        for block in itertools.chain([file.schema_arrow.empty_table()] * (not file.metadata.num_rows), blocks):
            yield with_types(block.to_pandas(), dict.fromkeys(whole, np.dtype("float64")))


def has_nulls(file: pq.ParquetFile, column: str) -> bool:
    groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
    chunks = [g.column(k) for g in groups for k in range(g.num_columns) if g.column(k).path_in_schema == column]
    counts = [c.statistics.null_count if c.is_stats_set and c.statistics.has_null_count else None for c in chunks]
    if None in counts:
        return any(batch.column(0).null_count for batch in file.iter_batches(BLOCK, columns=[column]))
    return any(counts)


def with_types(frame: pd.DataFrame, types: Mapping[Any, Any]) -> pd.DataFrame:
    """A frame with its columns of numbers, NumPy's, as those of `types` where these are numbers too."""

    def is_number(of: Any) -> bool:
        return isinstance(of, np.dtype) and of.kind in "iuf"

    wanted = {c: t for c, t in types.items() if c in frame and is_number(t) and is_number(frame[c].dtype)}
    return frame.astype(wanted)


def text_lines(file: Path, newline: str) -> Iterator[str]:
    """A file's lines with their ends, which are as `open` understands `newline`. Bytes that are no UTF-8 become U+FFFD.

    Raises:
        ValueError: when all are read, if so many lines have such bytes that the file is in another encoding.
    """
    with file.open("rb") as opened:
        if encoding := OTHER_ENCODINGS.get(opened.read(2)):
            raise ValueError(f"it is in {encoding}. Save it as UTF-8.")
    number = 0
    bad: list[int] = []
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as opened:
        for number, line in enumerate(opened, 1):
            try:
                line.encode()
                yield line
            except UnicodeEncodeError:
                bad.append(number)
                yield line.encode(errors="surrogateescape").decode(errors="replace")
    if len(bad) > max(1, MANY * number):
        raise ValueError(
            f"{len(bad):,} of its {number:,} lines are not UTF-8, the first of them line {bad[0]:,}. Save it as UTF-8."
        )
    if bad:
        say(
            f"  warning: {len(bad):,} lines of {file} have bytes that are not UTF-8 (line {bad[0]:,}); they are replaced by U+FFFD"
        )


def read_json_lines(lines: Iterable[str]) -> Iterator[pd.DataFrame]:
    """Blocks of JSON objects, one a line; empty lines count for nothing.

    Raises:
        ValueError: no line is one.
    """
    good = bad = 0
    for block in batched((line for line in lines if line.strip()), BLOCK):
        found = [parse_line(line) for line in block]
        good += sum(row is not None for row in found)
        bad += found.count(None)
        rows = [
            {PROBLEM: NO_OBJECT, LINE: line.strip()} if row is None else row for line, row in zip(block, found, strict=True)
        ]
        yield pd.DataFrame(rows, dtype=object)
    if not good:
        raise ValueError(f"none of its {bad:,} lines is a JSON object.")


def parse_line(line: str) -> dict[str, Any] | None:
    """The JSON object of a line, or None where it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def text_problem(value: Any) -> str | None:
    """Why a cell cannot be taken for a text, or None."""
    if value is None:
        return "no text"
    if not isinstance(value, str):
        return f"the text is a {type(value).__name__}, not a string"
    return None if value.strip() else "empty text"


def read_csv(lines: Iterable[str]) -> Iterator[pd.DataFrame]:
    """Blocks of CSV rows under a header, at least one; empty cells are None, all others strings, and empty lines count for
    nothing.

    pandas would take a first row of too many cells for the sign of an index, and shift all others.

    Raises:
        ValueError: there is no header, or a quote is never closed, so that what follows it cannot be told apart.
    """
    csv.field_size_limit(sys.maxsize)  # characters of a cell; else 131,072
    taken: list[str] = []  # lines of the row that is being read

    def noted() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    reader = csv.reader(noted())
    header = next((row for row in reader if row), None)
    if header is None:
        raise ValueError("it is empty.")
    taken.clear()

    def rows() -> Iterator[list[str | None]]:
        """Of each row the cells, what is wrong with it, and the line that it is."""
        for row in reader:
            whole = "".join(taken)
            if len(taken) > 1 and whole.count('"') % 2:
                raise ValueError(f"a quote in line {reader.line_num - len(taken) + 1:,} is never closed.")
            taken.clear()
            if len(row) == len(header):
                yield [*(cell or None for cell in row), None, None]
            elif row:
                problem = f"{len(row)} cells, where the header has {len(header)}"
                yield [*([None] * len(header)), problem, whole.strip()]

    names = [*header, PROBLEM, LINE]
    places = {name: names.index(name) for name in names}  # of columns with one name the first counts
    for block in blocks_of(rows()):
        frame = pd.DataFrame({name: [row[place] for row in block] for name, place in places.items()}, dtype=object)
        yield frame if frame[PROBLEM].notna().any() else frame.drop(columns=[PROBLEM, LINE])


def blocks_of(rows: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of at most BLOCK rows, at least one, which may be empty."""
    blocks = batched(rows, BLOCK)
    yield next(blocks, [])
    yield from blocks
