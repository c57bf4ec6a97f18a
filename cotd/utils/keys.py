"""Keys of requests, 16 bytes of memory each: Python's own strings and sets take 150."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np


def encode_keys(keys: Iterable[str]) -> np.ndarray:
    """(N,) a hash of each key, of NumPy's type S16, which sorts."""
    hashes = b"".join(hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys)
    return np.frombuffer(hashes, dtype="S16") if hashes else np.empty(0, dtype="S16")


def positions_in(ordered: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(N,) the position of each encoded key among sorted ones, or -1."""
    if not len(ordered):
        return np.full(len(keys), -1)
    nearest = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return np.where(ordered[nearest] == keys, nearest, -1)


class KeySet:
    """A set of keys that grows, as few sorted arrays, each at least twice as long as the next."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, keys: Sequence[str]) -> list[bool]:
        """Adds keys; returns for each whether it is known, from before or from earlier in `keys`."""
        encoded = encode_keys(keys)
        known = np.zeros(len(encoded), dtype=bool)
        for part in self._parts:
            known |= positions_in(part, encoded) >= 0
        new, first = np.unique(encoded, return_index=True)
        repeated = np.ones(len(encoded), dtype=bool)
        repeated[first] = False
        if len(new := new[~known[first]]):
            while self._parts and len(self._parts[-1]) < 2 * len(new):
                new = np.concatenate([self._parts.pop(), new])
                new.sort()
            self._parts.append(new)
        return (known | repeated).tolist()
