"""Storage URLs: s3://…, gs://… and whatever else fsspec knows."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from cotd.errors import CotdError

# What changes with a file, the best first: times differ between listings of one store, and hashes do not.
STATE_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")


def is_remote(storage: str) -> bool:
    """Whether a place is a URL, not a folder or file."""
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


def list_files(files: AbstractFileSystem, folder: str) -> dict[str, dict[str, Any]]:
    """Path → fsspec's info of every file below a remote folder, which need not exist.

    Object stores list all at once by a `find` of their own. The one that other file systems inherit reports a folder that it
    could not list as empty, as `exists` reports it as missing; here such errors are raised.
    """
    files.invalidate_cache()
    if isinstance(files, AsyncFileSystem) or type(files).find is not AbstractFileSystem.find:
        try:
            return files.find(folder, detail=True)
        except FileNotFoundError:
            return {}
    found: dict[str, dict[str, Any]] = {}
    folders = [folder]
    while folders:
        with contextlib.suppress(FileNotFoundError):
            for info in files.ls(folders.pop(), detail=True):
                if info["type"] == "directory":
                    folders.append(info["name"])
                else:
                    found[info["name"]] = info
    return found


def state_of(info: dict[str, Any]) -> str:
    """Changes with a remote file: its size and, as far as the file system has them, a hash or the time it was written."""
    return " ".join([str(info.get("size")), *(str(info[k]).strip('"') for k in STATE_KEYS if k in info)][:2])


def create(files: Any, path: str, content: bytes) -> None:
    """Writes a file unless it is there.

    Raises:
        FileExistsError: it is.
    """
    if isinstance(files, LocalFileSystem):  # fsspec looks first and writes then
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("xb") as file:
            file.write(content)
    else:
        files.pipe_file(path, content, mode="create")
