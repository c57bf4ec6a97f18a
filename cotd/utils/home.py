"""The cache folder of this machine."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The cache folder: `COTD_HOME`, or `~/.cache/cotd`."""
    return Path(os.environ.get("COTD_HOME") or "~/.cache/cotd").expanduser().absolute()
