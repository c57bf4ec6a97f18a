"""JSON-lines files whose writer was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotd.utils.jsonl import append_row, read_rows


def test_rows_survive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    append_row(path, {"step": 1, "text": "a\u2028b\nc"})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "text": "\xc3')
    append_row(path, {"step": 3})
    append_row(path, {"step": 4})
    assert read_rows(path) == [{"step": 1, "text": "a\u2028b\nc"}, {"step": 3}, {"step": 4}]


@pytest.mark.parametrize("line", ["[1]", "5", "null", "[" * 100_000, "{"])
def test_lines_that_are_not_objects_are_left_out(tmp_path: Path, line: str) -> None:
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    assert read_rows(tmp_path / "rows.jsonl") == []
