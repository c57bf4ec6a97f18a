"""The one exception whose message is written for the person at the terminal."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

# Below this much free space a failed write that gives no reason is put down to the full disk.
NEARLY_FULL = 64 * 2**20


class CotdError(Exception):
    """Bad input: what was wrong, where, and what to do about it.

    Several problems are raised together, one string each, so that a user mends them in one go. The
    command line prints them and exits with code 2. Pickles as itself, so it survives a trip through Ray.
    """

    def __init__(self, *problems: str):
        super().__init__(*problems)

    @property
    def problems(self) -> tuple[str, ...]:
        return self.args

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join(f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1))


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """' Did you mean …?' for the known name closest to `word`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def full_disk(error: BaseException | None, path: Path) -> bool:
    """Whether an error, or one that it came from, is that the disk at `path` is full or a quota used up.

    PyTorch and safetensors raise errors of their own kinds; PyTorch's does not even say why it could not write.
    """
    while error is not None:
        text = str(error).lower()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "no space left on device" in text or "disk quota exceeded" in text:
            return True
        if "write failed" in text or "failed writing" in text:
            there = next(p for p in (path, *path.parents) if p.exists())
            return shutil.disk_usage(there).free < NEARLY_FULL
        error = error.__cause__ or error.__context__
    return False
