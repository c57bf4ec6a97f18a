"""Rows of CSV and its like: the delimiter is found, and a quote that nothing closes costs no other row."""

from __future__ import annotations

import csv
import itertools
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

from cotd.progress import say

DELIMITERS = (",", ";", "\t", "|")
SAMPLE_LINES = 200  # by which the delimiter is found
MAX_ROW_LINES = 10_000  # a quoted cell over more lines is one whose quote nothing closes

DECLARED = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # how spreadsheets write the delimiter, in a line before the header

Row = tuple[list[str | None], str | None, str | None]


class Lines:
    """Lines, of which some can be given back.

    Attributes:
        number: of the last line that was taken, from 1.
    """

    def __init__(self, lines: Iterable[str]):
        self._lines, self._returned = iter(lines), deque[str]()
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else next(self._lines)
        self.number += 1
        return line

    def give_back(self, lines: list[str]) -> None:
        """The next lines are these again."""
        self._returned.extendleft(reversed(lines))
        self.number -= len(lines)


class Delimited:
    """The rows under a header; empty lines are skipped.

    Iterating yields each row's cells (None for an empty one; all None if the row is bad), what is wrong with it, or None, and its
    line, if something is.

    Not pandas' reader: it takes a first row of too many cells for an index, and shifts all others. The dialect is strict, so
    that a quote out of place is noticed: it would swallow every row up to the next one.

    Args:
        name: of the file, for messages.
        preferred: the delimiter, unless another fits better.
        warn: is told of what was decided.

    Raises:
        ValueError: there is no header.
    """

    def __init__(self, lines: Iterable[str], name: str, preferred: str = ",", warn: Callable[[str], None] = say):
        csv.field_size_limit(sys.maxsize)  # characters of a cell; else 131,072
        self._lines, self._name, self._warn = Lines(lines), name, warn
        sample = list(itertools.islice(self._lines, SAMPLE_LINES))
        declared = DECLARED.fullmatch(sample[0]) if sample else None
        sample = sample[1:] if declared else sample
        self._lines.give_back(sample)
        self.delimiter = declared[1] if declared else find_delimiter(sample, preferred)
        if self.delimiter != preferred:
            warn(f"  {name}: cells are separated by {self.delimiter!r}")
        header = next((row for row, _ in self._parsed(None) if row), None)
        if header is None:
            raise ValueError("it is empty.")
        self.header = header
        if repeated := [column for column, count in Counter(header).items() if count > 1 and column]:
            warn(f"  warning: {name} has several columns '{repeated[0]}', of which the first is read")
        literal = [row for line in sample if len(row := self._literal(line)) == len(header)]
        # By column: what several rows have, such as labels. Lines that have it are rows, whatever quotes say.
        self._usual = [
            {cell for cell, count in Counter(column).items() if count > 1 and cell} for column in zip(*literal, strict=True)
        ]

    def __iter__(self) -> Iterator[Row]:
        width, stray, first = len(self.header), 0, 0
        for row, line in self._parsed(width):
            if not any(row[width:]):  # delimiters at the end of the line
                del row[width:]
            if line is not None and row and len(row) == width:
                stray, first = stray + 1, first or self._lines.number
            if len(row) == width:
                yield [cell or None for cell in row], None, None
            elif row:
                quoted = "a quote out of place; " if line is not None else ""
                problem = f"{quoted}{len(row)} cells, but the header has {width}"
                yield [None] * width, problem, "".join(self._taken).strip()
        if stray:
            self._warn(
                f"  warning: {self._name} has {stray:,} rows with a quote that is not closed or not doubled, the first in line "
                f"{first:,}: their quotes are read as characters"
            )

    def _parsed(self, width: int | None) -> Iterator[tuple[list[str], str | None]]:
        """(cells, the line if its quotes could not be read) of each row."""
        while True:
            reader = csv.reader(self._noted(), delimiter=self.delimiter, strict=True)
            while True:
                self._taken: list[str] = []
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error:
                    break
                if len(self._taken) > 1 and width and self._are_rows(self._taken):
                    break
                yield row, None
            line, *others = self._taken
            self._lines.give_back(others)
            self._taken = [line]
            yield self._unquoted(line, width), line

    def _noted(self) -> Iterator[str]:
        """The lines, noted down until a row is complete."""
        for line in self._lines:
            self._taken.append(line)
            yield line
            if len(self._taken) > MAX_ROW_LINES:
                raise csv.Error("a quote that nothing closes")

    def _are_rows(self, lines: list[str]) -> bool:
        """Whether the lines of what was read as one row are rows by themselves, with labels that other rows have, too."""
        rows = [self._literal(line) for line in lines]
        return all(
            len(row) == len(self.header) and any(cell in usual for cell, usual in zip(row, self._usual, strict=False))
            for row in rows
        )

    def _unquoted(self, line: str, width: int | None) -> list[str]:
        """The cells of a line whose quotes cannot be read: escaped by backslashes, as MySQL writes them, else as they stand."""
        try:
            (row,) = csv.reader([line], delimiter=self.delimiter, strict=True, escapechar="\\")
        except (csv.Error, ValueError):
            row = []
        return row if len(row) == width else self._literal(line)

    def _literal(self, line: str) -> list[str]:
        return line.rstrip("\r\n").split(self.delimiter)


def find_delimiter(sample: list[str], preferred: str) -> str:
    """The delimiter by which most rows of a file's beginning have as many cells as its header, which has several.

    Of equal ones the preferred comes first; it is also that of a file of one column.
    """
    best, most = preferred, 0.0
    for delimiter in sorted(DELIMITERS, key=lambda d: d != preferred):
        widths = [len(row) for row in csv.reader(sample, delimiter=delimiter) if row]
        if widths and widths[0] > 1 and (share := widths.count(widths[0]) / len(widths)) > most:
            best, most = delimiter, share
    return best
