"""Short texts for people: messages of errors, percentages."""

from __future__ import annotations

from typing import Any


def describe_error(error: Exception) -> str:
    """An exception's kind and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}".rstrip(": .")


def format_percent(fraction: float) -> str:
    """ "10 %" for 0.1, "0.1 %" for 0.001."""
    return f"{100 * fraction:.4g} %"


def first_line(error: Any) -> str:
    """The first line of an error's message, ending in a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ") + "."
