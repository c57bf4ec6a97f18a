"""Files of rows: Parquet, JSON lines, JSON, CSV and tab-separated, read a block at a time; one bad row costs no other."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cotd.data.delimited import Delimited
from cotd.errors import CotdError
from cotd.progress import say
from cotd.storage.urls import is_remote
from cotd.utils.iteration import batched
from cotd.utils.jsonl import parse_row
from cotd.utils.text import describe_error

# How a file's name ends; all but Parquet may be compressed.
FILE_TYPES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
ENDINGS = f"{', '.join(FILE_TYPES)} (all but .parquet also compressed: {', '.join(COMPRESSIONS)})"
WILDCARDS = "*?["
# Columns of rows that cannot be used: why, and the line as it is; None in all other rows.
PROBLEM, LINE = "cotd.problem", "cotd.line"
BLOCK = 1024  # rows in memory at once: 100 MB with texts of 100,000 characters
BUFFER = 2**20  # bytes of a Parquet column read at once
NOT_AN_OBJECT = "the line is not a JSON object"
# From this fraction of the lines on, bytes that are not UTF-8 mean another encoding.
MAX_INVALID = 0.05
# What a file begins with that is not the text that its name says → what it is. Bytes that are not UTF-8 are as they are decoded.
NOT_TEXT = {
    ("\udcff\udcfe", "\udcfe\udcff"): "in UTF-16. Save it as UTF-8",
    ("\x1f\udc8b",): "compressed by gzip: its name must end in .gz",
    ("BZh",): "compressed by bzip2: its name must end in .bz2",
    ("(\udcb5/\udcfd",): "compressed by zstd: its name must end in .zst",
    ("PAR1",): "a Parquet file: its name must end in .parquet",
    ("PK\x03\x04",): "a zip archive or a spreadsheet. Unpack it, or save it as CSV",
}


def file_type(path: str) -> str | None:
    """The one of FILE_TYPES that a file or URL ends in, a compression's ending left out; None if it ends in another way."""
    name = plain = (urlsplit(path).path if is_remote(path) else path).lower()
    for ending in COMPRESSIONS:
        plain = plain.removesuffix(ending)
    found = next((ending for ending in FILE_TYPES if plain.endswith(ending)), None)
    return None if found == ".parquet" and plain != name else found


def names_files(source: str) -> bool:
    """Whether a source is a file, a URL, a pattern such as part-*.csv, or a folder that exists; else it may be a hub id."""
    return bool(
        file_type(source) or is_remote(source) or any(c in source for c in WILDCARDS) or Path(source).expanduser().is_dir()
    )


def find_files(source: str) -> list[str]:
    """The files of a source that `names_files`, in the order of their names.

    Raises:
        CotdError: there is none, or one of another type.
    """
    path = Path(source).expanduser()
    if is_remote(source):
        files = [source]
    elif path.is_dir():
        files = [str(file) for file in sorted(path.rglob("*")) if file.is_file() and file_type(file.name)]
        if not files:
            raise CotdError(f"the folder '{source}' has no file that ends in {ENDINGS}.")
    elif any(c in source for c in WILDCARDS) and not path.exists():
        folder = Path(path.anchor)
        files = [str(file) for file in sorted(folder.glob(str(path.relative_to(folder)))) if file.is_file()]
        if not files:
            raise CotdError(f"no file matches '{source}' (looked in {folder.absolute()}).")
    else:
        files = [str(path)]
        if not path.is_file():
            raise CotdError(f"no file '{source}' (looked in {path.absolute().parent}).")
    if other := next((file for file in files if not file_type(file)), None):
        raise CotdError(f"'{other}' is not a file that can be read: its name must end in {ENDINGS}.")
    return files


def file_digest(path: str) -> str:
    """The SHA-256 of a file's or URL's bytes, in hexadecimal.

    Raises:
        CotdError: it cannot be read.
    """
    with readable(path, decompress=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def read_file(path: str) -> Iterator[pd.DataFrame]:
    """One of `find_files` in blocks, at least one; text columns are kept as they are written.

    Yields:
        The file's columns (of JSON: those in the block), and `PROBLEM` and `LINE` if the block has bad rows: lines that are
        not JSON objects, CSV rows with too few or too many cells. Bytes that are not UTF-8 become U+FFFD.

    Raises:
        CotdError: the file does not exist, has another type, or cannot be read as what its name says.
    """
    (file,) = find_files(path)
    ending = file_type(file)
    with readable(file) as binary:
        if ending == ".parquet":
            yield from read_parquet(binary)
        elif ending in (".jsonl", ".json"):
            yield from json_blocks(json_rows(binary, file))
        else:
            yield from read_csv(text_lines(binary, path, newline=""), path, delimiter_of(file))


def delimiter_of(path: str) -> str:
    """What stands between the cells of a file, by its name."""
    return "\t" if file_type(path) == ".tsv" else ","


@contextlib.contextmanager
def readable(path: str, decompress: bool = True) -> Iterator[IO[bytes]]:
    """`open_file`; whatever goes wrong in the block, other than in a program, is a CotdError that names the file."""
    try:
        with open_file(path, decompress) as file:
            yield file
    except CotdError:
        raise
    except Exception as error:  # what is behind URLs has errors of its own
        if is_remote(path):
            said = error.__cause__ if str(error) == path and error.__cause__ else error
            raise CotdError(f"cannot read the URL '{path}': {describe_error(said)}.") from error
        if not isinstance(
            error, (ValueError, OSError, EOFError)
        ):  # Arrow's are ValueErrors, those of broken archives the others
            raise
        raise CotdError(f"cannot read '{path}': {error}") from error


@contextlib.contextmanager
def open_file(path: str, decompress: bool = True) -> Iterator[IO[bytes]]:
    """The bytes of a file or URL."""
    codecs = COMPRESSIONS.items() if decompress else ()
    codec = next((codec for ending, codec in codecs if path.lower().endswith(ending)), None)
    with fsspec.open(path, "rb") if is_remote(path) else open(path, "rb") as file:
        if codec is None:
            yield file
            return
        with pa.CompressedInputStream(pa.PythonFile(file, "r"), codec) as plain:
            yield plain


def read_parquet(source: IO[bytes]) -> Iterator[pd.DataFrame]:
    """A Parquet file in blocks, at least one."""
    with pq.ParquetFile(source, buffer_size=BUFFER) as file:
        blocks = (pa.Table.from_batches([batch]) for batch in file.iter_batches(BLOCK))
        first = next(blocks, file.schema_arrow.empty_table())
        yield from map(to_pandas, itertools.chain([first], blocks))


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """A table whose integers stay integers, also in a block where some are missing."""
    return table.to_pandas(integer_object_nulls=True, ignore_metadata=True)  # what pandas wrote as its index is a column, too


def text_lines(file: IO[bytes], name: str, newline: str, warn: Callable[[str], None] = say) -> Iterator[str]:
    """A file's lines with their ends, `newline` as in `open`. Bytes that are not UTF-8 become U+FFFD.

    Args:
        warn: is told of such bytes.

    Raises:
        ValueError: the file is in another encoding, which may be known only after the last line.
    """
    number = 0
    bad: list[int] = []
    for number, line in enumerate(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline), 1):
        if number == 1 and (problem := not_text(line)):
            raise ValueError(f"it is {problem}.")
        try:
            line.encode()
            yield line
        except UnicodeEncodeError:
            bad.append(number)
            yield line.encode(errors="surrogateescape").decode(errors="replace")
    if len(bad) > max(1, MAX_INVALID * number):
        raise ValueError(f"{len(bad):,} of its {number:,} lines are not UTF-8, first line {bad[0]:,}. Save it as UTF-8.")
    if bad:
        warn(f"  warning: {len(bad):,} lines of {name} are not UTF-8 (line {bad[0]:,}); bad bytes are replaced by U+FFFD")


def not_text(line: str) -> str | None:
    """What a file is that begins with a line and is not text in UTF-8; None if it may be."""
    known = next((problem for beginnings, problem in NOT_TEXT.items() if line.startswith(beginnings)), None)
    return known or ("in UTF-16, or not a text. Save it as UTF-8" if 4 * line.count("\x00") > len(line) else None)


def json_rows(file: IO[bytes], path: str, warn: Callable[[str], None] = say) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """The objects of a JSON file, None for what is not one, and how each is written.

    A `.json` file may be a list of objects, an object that holds such a list, which are read as a whole, or JSON lines; empty lines
    are skipped.
    """
    lines = text_lines(file, path, "\n", warn)  # JSON strings may hold U+2028 and its like
    content: Iterator[str] = (line for line in lines if line.strip())
    if file_type(path) == ".json":
        beginning = list(itertools.islice(content, 2))
        content = itertools.chain(beginning, content)
        if len(beginning) == 1 or (beginning and parse_row(beginning[0]) is None):
            whole = list(content)
            for entry in json_entries("".join(whole), path, warn) or []:
                yield entry if isinstance(entry, dict) else None, json.dumps(entry, ensure_ascii=False)
                whole = []
            content = iter(whole)
    for line in content:
        yield parse_row(line), line.strip()


def json_entries(text: str, path: str, warn: Callable[[str], None]) -> list[Any] | None:
    """The entries of a JSON text: of a list, of the one list of objects in an object, or the object itself; None if it is JSON lines.

    Raises:
        ValueError: it is a list that is broken, or an object with several lists of objects.
    """
    try:
        whole = json.loads(text)
    except RecursionError as error:
        raise ValueError("its lists are nested too deeply.") from error
    except ValueError:
        if text.lstrip().startswith("["):
            raise
        return None
    if not isinstance(whole, dict):
        return whole if isinstance(whole, list) else [whole]
    lists = {key: value for key, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)}
    if len(lists) > 1:
        raise ValueError(f"it is an object with several lists: {', '.join(lists)}. Write each to a file of its own.")
    for key, entries in lists.items():
        warn(f"  {path}: the rows are those of '{key}'")
        return entries
    return [whole]


def json_blocks(rows: Iterable[tuple[dict[str, Any] | None, str]]) -> Iterator[pd.DataFrame]:
    """Blocks of what `json_rows` gives.

    Raises:
        ValueError: no row is a JSON object.
    """
    total = good = 0
    for block in batched(rows, BLOCK):
        total += len(block)
        good += sum(row is not None for row, _ in block)
        yield pd.DataFrame([{PROBLEM: NOT_AN_OBJECT, LINE: line} if r is None else r for r, line in block], dtype=object)
    if not good:
        raise ValueError(f"none of its {total:,} lines is a JSON object.")


def text_problem(value: Any) -> str | None:
    """Why a cell cannot be used as a text, or None."""
    if value is None:
        return "no text"
    if not isinstance(value, str):
        kind = "list" if isinstance(value, np.ndarray) else type(value).__name__
        return f"the text is a {kind}, not a string"
    return None if value.strip() else "empty text"


def read_csv(lines: Iterable[str], name: str = "the file", delimiter: str = ",") -> Iterator[pd.DataFrame]:
    """Blocks of CSV rows under a header, at least one; empty cells are None, all others strings, and empty lines are skipped.

    Args:
        delimiter: unless another fits better, see `cotd.data.delimited`.

    Raises:
        ValueError: there is no header.
    """
    table = Delimited(lines, name, delimiter)
    names = [*table.header, PROBLEM, LINE]
    positions = {column: names.index(column) for column in names}  # of columns with the same name the first counts
    blocks = batched(([*cells, problem, line] for cells, problem, line in table), BLOCK)
    for block in itertools.chain([next(blocks, [])], blocks):
        frame = pd.DataFrame({column: [row[i] for row in block] for column, i in positions.items()}, dtype=object)
        yield frame if frame[PROBLEM].notna().any() else frame.drop(columns=[PROBLEM, LINE])
