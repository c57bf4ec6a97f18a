"""Peak memory of the driver at 10,000 and at 200,000 rows, with a stub engine: `python -m tests.benchmarks.annotate.memory`.

Each size is a process of its own, which reads a Parquet file and writes the annotations: about six minutes in all. The
engine is called in the driver: nothing but the driver's own work is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cotd.study.config import load_config
from cotd.teachers.requests import Request
from cotd.utils.iteration import batched
from pipelines.annotate.run import annotate
from tests.benchmarks.annotate.stub import stub_completion
from tests.benchmarks.figures import call, is_small, memory_figures, peak_megabytes, scratch_folder, write

ROWS = (10_000, 200_000)


def complete(requests: Iterable[Request]) -> Iterator[list[dict[str, Any]]]:
    for batch in batched(requests, 128):
        yield [stub_completion(r.key, r.prompt, r.sampling) for r in batch]


def measured(rows: int) -> tuple[int, float]:
    with scratch_folder() as folder:
        call("annotate.stub", "write_study", folder=folder, train=rows)  # in a process whose memory does not count
        return rows, call("annotate.memory", "run", path=folder / "study.yaml")


def run(path: str) -> float:
    annotate(load_config(path), complete)
    return peak_megabytes()


def main() -> None:
    small = is_small(__doc__)
    few, many = (measured(rows // 20 if small else rows) for rows in ROWS)
    write("annotate_memory", memory_figures("driver_peak_mb", "row", few, many, "; two annotations a row"), small)


if __name__ == "__main__":
    main()
