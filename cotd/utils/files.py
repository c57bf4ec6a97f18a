"""Atomic writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Writes to a temporary name and renames, so that a reader never sees half a file."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
    scratch.replace(path)
