"""Where a study's annotations lie, and how they are written and read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cotd.study.config import StudyConfig

ROW_GROUP = 65_536
QUARANTINE = pa.schema(dict.fromkeys(("text", "label", "split", "reason"), pa.string()))


@dataclass(frozen=True)
class AnnotationFiles:
    """Where a study's annotations lie."""

    directory: Path

    @property
    def annotations(self) -> Path:
        return self.directory / "annotations.parquet"

    @property
    def teacher_test(self) -> Path:
        """The teacher's own labels of the test reviews."""
        return self.directory / "teacher_test.parquet"

    @property
    def held_out_rationales(self) -> Path:
        """The teacher's own rationales of validation and test reviews, where `teacher.held_out_rationales` asks for them."""
        return self.directory / "held_out_rationales.parquet"

    @property
    def quarantine(self) -> Path:
        return self.directory / "quarantined_reviews.parquet"

    @property
    def quarantined_answers(self) -> Path:
        """The rows of `teacher.answers` that are set aside, and why."""
        return self.directory / "quarantined_answers.parquet"

    @property
    def summary(self) -> Path:
        return self.directory / "summary.json"

    @property
    def page(self) -> Path:
        """The annotations to read in a browser."""
        return self.directory / "annotations.html"

    @classmethod
    def of(cls, config: StudyConfig) -> AnnotationFiles:
        return cls(config.directory / "annotations")


def write_text(path: Path, text: str) -> None:
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Writes a table a block of rows at a time: the whole of it in another form would double its memory."""
    blocks = (table.iloc[start : start + ROW_GROUP] for start in range(0, len(table), ROW_GROUP))
    write_blocks(blocks, path, pa.Schema.from_pandas(table, preserve_index=False))


def write_blocks(blocks: Iterable[pd.DataFrame], path: Path, schema: pa.Schema) -> None:
    """Writes rows as they come."""
    with parquet_file(path, schema) as write:
        for block in blocks:
            write(block)


@contextlib.contextmanager
def parquet_file(path: Path, schema: pa.Schema) -> Iterator[Callable[[pd.DataFrame], None]]:
    """A file to write rows to, which is put in place at the end of the block; of one that fails nothing is left."""
    scratch = path.with_name(path.name + ".part")
    try:
        with pq.ParquetWriter(scratch, schema) as writer:
            yield lambda rows: writer.write_table(pa.Table.from_pandas(rows, schema=schema, preserve_index=False))
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def read_blocks(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    """Some columns of a Parquet file, some thousand rows at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=columns):
            yield batch.to_pandas()


def read_annotations(config: StudyConfig) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """A study's annotations and their summary, or None where they have not been made."""
    files = AnnotationFiles.of(config)
    if not files.summary.is_file():
        return None
    return pd.read_parquet(files.annotations), json.loads(files.summary.read_text(encoding="utf-8"))


def read_rationales(path: Path | str | None) -> dict[str, str] | None:
    """Validation or test review id → the teacher's own rationale, "" where it has none; None where there is no file."""
    if path is None:
        return None
    table = pd.read_parquet(path)
    return dict(zip(table["review_id"], table["rationale"], strict=True))


def read_teacher_test(path: Path | str | None) -> dict[str, str] | None:
    """Test review id → the teacher's own label, of a study's `teacher_test` file; None where there is none."""
    if path is None:
        return None
    table = pd.read_parquet(path)
    return table[table["predicted"].notna()].set_index("review_id")["predicted"].to_dict()
