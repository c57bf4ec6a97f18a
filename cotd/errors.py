"""CotdError, whose message is written for the person at the terminal, and what helps to find its cause."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable
from pathlib import Path

# Bytes of free space below which a failed write without a stated reason is blamed on the full disk.
NEARLY_FULL = 64 * 2**20


class CotdError(Exception):
    """Bad input: what was wrong, where, and what to do about it.

    Several problems are raised together, one string each, for a user to fix in one go. The command line prints them and
    exits with code 2. Pickles as itself, so it survives a trip through Ray.

    Example:
        >>> try:
        ...     cotd.load_config("mine.yaml", ["training.stepz=4"])
        ... except cotd.CotdError as error:
        ...     print(error.problems[0])
        mine.yaml: unknown key 'training.stepz'. Did you mean 'steps'? ...
    """

    def __init__(self, *problems: str):
        super().__init__(*problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """One message for each problem."""
        return self.args

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join(f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1))


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean …?' for the known name closest to `word`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not among the known ones, with the nearest of them."""
    return f"unknown {kind} '{name}'; known: {', '.join(known)}.{nearest(name, known)}"


def full_disk(error: BaseException | None, path: Path) -> bool:
    """Whether an error, or one that caused it, means that the disk at `path` is full or a quota used up.

    PyTorch and safetensors raise errors of their own kinds; PyTorch's does not give a reason.
    """
    while error is not None:
        text = str(error).lower()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "no space left on device" in text or "disk quota exceeded" in text:
            return True
        if "write failed" in text or "failed writing" in text:
            existing = next(p for p in (path, *path.parents) if p.exists())
            return shutil.disk_usage(existing).free < NEARLY_FULL
        error = error.__cause__ or error.__context__
    return False
