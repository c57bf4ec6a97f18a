"""Files of rows: Parquet, JSON lines and CSV, read so that one bad row costs no other."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.errors import CotdError
from cotd.progress import say

FILE_TYPES = (".parquet", ".jsonl", ".csv")
# Columns of rows that cannot be used: why, and the line as it is; None in all other rows.
PROBLEM, LINE = "cotd.problem", "cotd.line"
NO_OBJECT = "the line is no JSON object"
# From this share of the lines on, bytes that are no UTF-8 are another encoding.
MANY = 0.05
OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_file(path: str) -> pd.DataFrame:
    """A file as a frame; text columns are kept as they are written.

    Returns:
        The file's columns; and `PROBLEM` and `LINE` if some rows are bad: lines that are no JSON, CSV rows with too few or
        too many cells. Bytes that are no UTF-8 become U+FFFD.

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
            return pd.read_parquet(file)
        if path.endswith(".jsonl"):
            # Lines end at \n alone: JSON strings may hold U+2028 and its like.
            return read_json_lines(text_lines(file, newline="\n"))
        return read_csv(text_lines(file, newline=""))
    except (ValueError, OSError, csv.Error) as error:  # ArrowInvalid is a ValueError
        raise CotdError(f"cannot read '{path}': {error}") from error


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


def read_json_lines(lines: Iterable[str]) -> pd.DataFrame:
    """A frame of JSON objects, one a line; empty lines count for nothing.

    Raises:
        ValueError: no line is one.
    """
    rows: list[dict[str, Any]] = []
    bad = 0
    for line in lines:
        if line.strip():
            row = parse_line(line)
            bad += row is None
            rows.append({PROBLEM: NO_OBJECT, LINE: line.strip()} if row is None else row)
    if bad == len(rows):
        raise ValueError(f"none of its {bad:,} lines is a JSON object.")
    return pd.DataFrame(rows, dtype=object)


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


def read_csv(lines: Iterable[str]) -> pd.DataFrame:
    """A frame of CSV lines with a header; empty cells are None, all others strings, and empty lines count for nothing.

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
    columns: list[list[str | None]] = [[] for _ in (*header, PROBLEM, LINE)]
    taken.clear()
    for row in reader:
        whole = "".join(taken)
        if len(taken) > 1 and whole.count('"') % 2:
            raise ValueError(f"a quote in line {reader.line_num - len(taken) + 1:,} is never closed.")
        taken.clear()
        if not row:
            continue
        problem = None if len(row) == len(header) else f"{len(row)} cells, where the header has {len(header)}"
        cells: list[str | None] = [cell or None for cell in row]
        if problem:
            cells = [None] * len(header)
        for column, cell in zip(columns, [*cells, problem, whole.strip() if problem else None], strict=True):
            column.append(cell)
    names = [*header, PROBLEM, LINE]
    # Of columns with one name the first counts.
    frame = pd.DataFrame({name: columns[names.index(name)] for name in names}, dtype=object)
    return frame if frame[PROBLEM].notna().any() else frame.drop(columns=[PROBLEM, LINE])
