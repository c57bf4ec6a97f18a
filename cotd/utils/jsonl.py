"""JSON-lines files that grow while others read them: a kill may cut off their last line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Appends an object on a line of its own, even if the line before it was cut off."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + json.dumps(row, ensure_ascii=False).encode() + b"\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects in a file; lines that are cut off are left out, and a missing file has none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [row for row in map(parse_row, lines) if row is not None]


def parse_row(line: str | bytes) -> dict[str, Any] | None:
    """The JSON object of a line, or None if it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
