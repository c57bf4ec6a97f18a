"""What waits on disk comes back as it was, in whatever order it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotd.data import spill
from cotd.data.spill import SortedRows, SpillFile, TextFile
from cotd.errors import CotdError

SCHEMA = pa.schema({"id": pa.string(), "sample": pa.int64(), "text": pa.string()})
# Ids as they are: hashes, spread over all there could be.
IDS = st.integers(0, 2**64 - 1).map(lambda n: f"{n:016x}")
ROWS = st.lists(st.tuples(st.sampled_from(["0" * 16, "7" * 16, "f" * 16]) | IDS, st.integers(0, 3)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, 60))
def test_rows_leave_sorted_once_and_an_id_in_one_block(rows: list[tuple[str, int]], expected: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PACKED_AT": 2, "WRITTEN_AT": 5, "ROWS_A_BUCKET": 4}.items():
            patch.setattr(spill, name, value)
        kept = SortedRows(SCHEMA, ["id", "sample"], expected)
        for number, (i, sample) in enumerate(rows):
            kept.add({"id": i, "sample": sample, "text": f"row {number}"})
        for _ in range(2):
            blocks = list(kept.blocks())
            found = [(r.id, r.sample, r.text) for block in blocks for r in block.itertuples()]
            first = {key: f"row {rows.index(key)}" for key in rows}
            assert found == [(*key, first[key]) for key in sorted(first)]
            ids = [set(block["id"]) for block in blocks]
            assert sum(map(len, ids)) == len(set().union(*ids))
        assert kept.table()["text"].to_list() == [text for *_, text in found]


@given(st.lists(st.lists(st.text(st.characters(), max_size=20), max_size=5), max_size=5), st.randoms(use_true_random=False))
def test_texts_are_found_by_number(blocks: list[list[str]], random: Any) -> None:
    file = TextFile()
    for block in blocks:
        file.add(block)
    texts = [text for block in blocks for text in block]
    numbers = random.choices(range(len(texts)), k=10) if texts else []
    assert file.take(np.array(numbers, dtype=int)) == [texts[n] for n in numbers]
    assert list(file) == texts


def test_nothing_is_left_of_a_file_or_seen_of_it_and_its_folder_need_not_exist(tmp_path: Path) -> None:
    file = SpillFile(tmp_path / "not" / "yet")
    file.add(b"some rows")
    assert file.read(5, 4) == b"rows"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    file = SpillFile(tmp_path)
    file._file = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(CotdError, match=rf"cannot keep rows on the disk of {tmp_path}: .*No space left"):
        file.add(b"x" * 100_000)
