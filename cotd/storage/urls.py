"""Storage URLs: s3://…, gs://… and whatever else fsspec knows."""

from __future__ import annotations

from typing import Any

import fsspec

from cotd.errors import CotdError


def is_remote(storage: str) -> bool:
    """Whether a storage is a URL, not a folder."""
    return "://" in storage


def open_remote(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises:
        CotdError: fsspec does not know the protocol, or its package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise CotdError(
            f"storage '{url}' cannot be used: {error}. Name a folder, or install the package of the protocol."
        ) from error
