"""Iteration helpers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` items, in order (itertools.batched is Python 3.12's)."""
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def find(ids: list[int], wanted: list[int]) -> int | None:
    """Where `wanted` first occurs in `ids`, or None."""
    return next((i for i in range(len(ids) - len(wanted) + 1) if ids[i : i + len(wanted)] == wanted), None)
