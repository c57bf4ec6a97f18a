"""Memory that is free, and that the operating system does not know of."""

from __future__ import annotations

import ctypes

import pyarrow as pa


def release_memory() -> None:
    """Gives back what allocators hold of freed memory: of reading 200,000 reviews that was 140 MB. Takes milliseconds.

    Does nothing for the C library's part where that is not glibc. Cycles of objects are left to Python: to look for them
    takes half a second in a process that has imported PyTorch.
    """
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
