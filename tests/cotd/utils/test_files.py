"""Atomic writes, and what is left of those that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from cotd.utils.files import read_json, replacing, write_bytes, write_json
from cotd.utils.parquet import parquet_writer, read_blocks, write_parquet

ROWS = pd.DataFrame({"id": ["a", "b", "c"], "n": [1, 2, 3]})


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for value in ({"text": "früher"}, {"text": "später"}):
        write_json(path, value)
        assert read_json(path) == value
    write_bytes(path, b"kept", durable=True)
    assert path.read_bytes() == b"kept"
    assert list(tmp_path.iterdir()) == [path]


def write_half(temporary: Path) -> None:
    temporary.write_text("half")
    raise OSError("the disk is full")


def write_half_a_folder(temporary: Path) -> None:
    temporary.mkdir()
    write_half(temporary / "file")


def write_folder(path: Path, name: str) -> None:
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / name).touch()


@pytest.mark.parametrize("write", [write_half, write_half_a_folder])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "file") as temporary:
        write(temporary)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_folder_does_not_replace_one_with_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "first")
    with pytest.raises(OSError, match="not empty"):
        write_folder(tmp_path / "folder", "second")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "first"]


def test_parquet_is_written_and_read_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_parquet(ROWS, path)
    assert pd.concat(read_blocks(path, ["n"]))["n"].tolist() == [1, 2, 3]
    with pytest.raises(KeyError), parquet_writer(path, pa.schema({"other": pa.string()})) as write:
        write(ROWS)
    pd.testing.assert_frame_equal(pd.read_parquet(path), ROWS)
    assert list(tmp_path.iterdir()) == [path]
