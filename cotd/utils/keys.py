"""Keys of requests, 16 bytes of memory each: Python's own strings and sets take 150."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np


def packed_keys(keys: Iterable[str]) -> np.ndarray:
    """(N,) 16 bytes that stand for each key, of NumPy's type S16, which sorts."""
    content = b"".join(hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys)
    return np.frombuffer(content, dtype="S16") if content else np.empty(0, dtype="S16")


def places_in(ordered: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of some packed keys is among sorted ones, or -1."""
    if not len(ordered):
        return np.full(len(wanted), -1)
    found = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[found] == wanted, found, -1)


class KeySet:
    """A set of keys that grows, as few sorted arrays, each at least twice as long as the next."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, keys: Sequence[str]) -> list[bool]:
        """Adds keys; says of each whether it was there before, or comes earlier among them."""
        packed = packed_keys(keys)
        there = np.zeros(len(packed), dtype=bool)
        for part in self._parts:
            there |= places_in(part, packed) >= 0
        new, first = np.unique(packed, return_index=True)
        repeated = np.ones(len(packed), dtype=bool)
        repeated[first] = False
        if len(new := new[~there[first]]):
            while self._parts and len(self._parts[-1]) < 2 * len(new):
                new = np.concatenate([self._parts.pop(), new])
                new.sort()
            self._parts.append(new)
        return (there | repeated).tolist()
