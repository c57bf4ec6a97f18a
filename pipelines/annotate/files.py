"""Where a study's annotations are, and how later stages read them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from cotd.study.config import StudyConfig
from cotd.utils.files import read_json

QUARANTINE = pa.schema(dict.fromkeys(("text", "label", "split", "reason"), pa.string()))


class AnnotationFiles:
    """The files of a study's annotations."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.annotations = directory / "annotations.parquet"
        self.teacher_test = directory / "teacher_test.parquet"  # the teacher's own labels of the test examples
        # The teacher's own rationales of validation and test examples, where `teacher.held_out_rationales` asks for them.
        self.held_out_rationales = directory / "held_out_rationales.parquet"
        self.quarantine = directory / "quarantined_reviews.parquet"
        self.quarantined_imported = directory / "quarantined_imported.parquet"  # rows of `teacher.imported`, and why
        self.batches = directory / "batches"  # those of `teacher.api.mode: batch` that are not done
        self.journal = directory / "journal"  # completions that no shard of the store has yet
        self.summary = directory / "summary.json"
        self.page = directory / "annotations.html"  # to read in a browser

    @classmethod
    def of(cls, config: StudyConfig) -> AnnotationFiles:
        return cls(config.directory / "annotations")


@contextlib.contextmanager
def replaced_together(files: AnnotationFiles) -> Iterator[AnnotationFiles]:
    """Files to write in the block, which take the places of a study's at its end: all of them, or none.

    Without a summary a study has no annotations: where a run is killed while files are moved, the next one moves them all, and
    nothing is asked again.
    """
    files.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=files.directory, prefix=".new-") as folder:
        new = AnnotationFiles(Path(folder))
        yield new
        files.summary.unlink(missing_ok=True)
        for name in ("annotations", "teacher_test", "held_out_rationales", "quarantine", "quarantined_imported", "page"):
            written, path = getattr(new, name), getattr(files, name)
            if written.is_file():
                written.replace(path)
            else:
                path.unlink(missing_ok=True)
        new.summary.replace(files.summary)


def read_annotations(config: StudyConfig) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """A study's annotations and their summary, or None where they have not been made."""
    files = AnnotationFiles.of(config)
    if not files.summary.is_file():
        return None
    return pd.read_parquet(files.annotations), read_json(files.summary)


def read_rationales(path: Path | str | None) -> dict[str, str] | None:
    """Validation or test example id → the teacher's own rationale, "" where it has none; None where there is no file."""
    if path is None:
        return None
    table = pd.read_parquet(path)
    return dict(zip(table["example_id"], table["rationale"], strict=True))


def read_teacher_test(path: Path | str | None) -> dict[str, str] | None:
    """Test example id → the teacher's own label, of a study's `teacher_test` file; None where there is none."""
    if path is None:
        return None
    table = pd.read_parquet(path)
    return table[table["predicted"].notna()].set_index("example_id")["predicted"].to_dict()
