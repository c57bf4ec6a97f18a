"""Iteration helpers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items, in order (itertools.batched is Python 3.12's)."""
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def each_or_none(values: Sequence[T] | None, count: int) -> Sequence[T | None]:
    """The values, or None `count` times if there are none."""
    return [None] * count if values is None else values


def find_sublist(items: Sequence[int], part: Sequence[int]) -> int | None:
    """The position at which `part` first occurs in `items`, or None."""
    return next((i for i in range(len(items) - len(part) + 1) if items[i : i + len(part)] == part), None)
