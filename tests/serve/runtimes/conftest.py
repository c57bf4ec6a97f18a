"""Skipping what needs packages that are not installed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from serve.runtimes.packages import installed


def need(packages: Sequence[str]) -> None:
    """Skips the test if one of the packages is missing."""
    if not installed(packages):
        pytest.skip(f"needs pip install {' '.join(packages)}")
