"""Three Ray nodes against one: `python -m tests.benchmarks.annotate.nodes`; about eight minutes.

The nodes are processes of Ray's cluster utility on this machine, with one CPU each. A stub engine takes a fixed time a
row and no processor, as a GPU would, so that what is measured is whether the pipeline keeps every node busy.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

from cotd.teachers.config import EngineConfig
from cotd.teachers.requests import Request
from pipelines.annotate.run import annotate
from tests.benchmarks.annotate.stub import StubEngine, write_study
from tests.benchmarks.figures import figure, is_small, scratch_folder, write

SECONDS_A_ROW = 0.02


class Delayed(StubEngine):
    SECONDS_A_ROW = SECONDS_A_ROW


def rows_per_second(nodes: int, rows: int) -> tuple[float, float]:
    """Answers a second of a run on a cluster of `nodes`: from a pass's first answer to its last, and with what Ray takes to start."""
    import ray
    from ray.cluster_utils import Cluster

    from pipelines.annotate.engines.choose import teacher_engine
    from pipelines.cluster.session import quiet_ray_data

    # Else another command on this machine would join these nodes.
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**28})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1, object_store_memory=2**28)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        quiet_ray_data()
        engine = EngineConfig(replicas=nodes, batch_size=32)
        with scratch_folder() as scratch, teacher_engine("stub", engine, engine_class=Delayed) as complete:
            list(complete([Request("stub", "1", "Review: warm up", {"max_tokens": 1})]))  # the actors have started
            config = write_study(scratch, rows)
            steady: list[tuple[int, float]] = []  # of each pass: rows after its first batch, and seconds

            def timed(requests: Iterable[Request]) -> Iterator[list[dict[str, Any]]]:
                rows, first = 0, 0.0
                for batch in complete(requests):
                    rows += len(batch) if first else 0
                    first = first or time.perf_counter()
                    yield batch
                steady.append((rows, time.perf_counter() - first))

            spent = annotate(config, timed)["spent"]
            rate = sum(r for r, _ in steady) / sum(s for _, s in steady)
            return rate, spent["rows_per_second"]
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(os.environ.pop("RAY_TMPDIR"), ignore_errors=True)


def main() -> None:
    small = is_small(__doc__)
    rows = 300 if small else 6000
    (one, one_whole), (three, three_whole) = rows_per_second(1, rows), rows_per_second(3, rows)
    whole = f"with Ray's start {three_whole:.1f} and {one_whole:.1f}"
    note = f"{SECONDS_A_ROW * 1000:g} ms a row; at best {3 / SECONDS_A_ROW:g} rows a second; {whole}"
    write("annotate_nodes", [figure("rows_per_second_3_nodes", three, "rows/s", ("one node", one), note=note)], small)


if __name__ == "__main__":
    main()
