"""Peak memory of the driver at 10,000 and at 200,000 rows, with a stub engine: `python -m tests.benchmarks.annotate.memory`.

Each size is a process of its own, which reads a Parquet file and writes the annotations: about six minutes in all. The
engine is called in the driver: nothing but the driver's own work is measured.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator
from typing import Any

from cotd.study.config import load_config
from cotd.teachers.requests import Request
from cotd.utils.iteration import batched
from pipelines.annotate.run import annotate
from tests.benchmarks.annotate.stub import stub_completion
from tests.benchmarks.figures import call, figure, is_small, scratch_folder, write

ROWS = {"10k": 10_000, "200k": 200_000}


def complete(requests: Iterable[Request]) -> Iterator[list[dict[str, Any]]]:
    for batch in batched(requests, 128):
        yield [stub_completion(r.key, r.prompt, r.sampling) for r in batch]


def peak_megabytes(rows: int) -> float:
    with scratch_folder() as folder:
        call("annotate.stub", "write_study", folder=folder, train=rows)  # in a process whose memory does not count
        return call("annotate.memory", "run", path=folder / "study.yaml")


def run(path: str) -> float:
    annotate(load_config(path), complete)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    small = is_small(__doc__)
    peaks = {name: peak_megabytes(rows // 20 if small else rows) for name, rows in ROWS.items()}
    more = peaks["200k"] - peaks["10k"]
    a_row = more * 2**20 / ((ROWS["200k"] - ROWS["10k"]) / (20 if small else 1))
    note = f"the difference is {more:,.0f} MB, {a_row:,.0f} bytes a row; two annotations a row"
    write(
        "annotate_memory",
        [
            figure("driver_peak_mb_10k", peaks["10k"], "MB"),
            figure("driver_peak_mb_200k", peaks["200k"], "MB", ("10,000 rows", peaks["10k"]), note=note),
        ],
        small,
    )


if __name__ == "__main__":
    main()
