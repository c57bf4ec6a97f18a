"""Three Ray nodes against one: `python -m tests.benchmarks.annotate_nodes`; about four minutes.

The nodes are processes of Ray's cluster utility on this machine, with one CPU each. A stub engine takes a fixed time a
row and no processor, as a GPU would, so that what is measured is whether the pipeline keeps every node busy.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cotd.completions import Request
from cotd.config import EngineConfig
from pipelines.annotate import annotate
from tests.benchmarks.annotating import StubEngine, arguments, figure, write, write_study

SECONDS_A_ROW = 0.02


class Delayed(StubEngine):
    SECONDS_A_ROW = SECONDS_A_ROW


def rows_per_second(nodes: int, rows: int) -> float:
    """Answers a second of a run on a cluster of `nodes`, from the first request to the last answer."""
    import ray
    from ray.cluster_utils import Cluster

    from pipelines.cluster import quiet_ray_data
    from pipelines.engine import teacher_engine

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**28})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1, object_store_memory=2**28)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        quiet_ray_data()
        engine = EngineConfig(replicas=nodes, batch_size=32)
        with (
            tempfile.TemporaryDirectory(prefix="cotd-bench-") as scratch,
            teacher_engine("stub", engine, engine_class=Delayed) as complete,
        ):
            list(complete([Request("stub", "1", "Review: warm up", {"max_tokens": 1})]))  # the actors have started
            config = write_study(Path(scratch), rows)
            spent: dict[str, float] = {}

            def timed(requests: Iterable[Request]) -> Iterator[list[dict[str, Any]]]:
                started = time.perf_counter()
                yield from complete(requests)
                spent["seconds"] = spent.get("seconds", 0.0) + time.perf_counter() - started

            summary = annotate(config, timed)
            return summary["usage"]["requests"] / spent["seconds"]
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    small = arguments(__doc__ or "").small
    rows = 300 if small else 3000
    one, three = rows_per_second(1, rows), rows_per_second(3, rows)
    note = f"{SECONDS_A_ROW * 1000:g} ms a row; at best {3 / SECONDS_A_ROW:g} rows a second"
    write("annotate_nodes", [figure("rows_per_second_3_nodes", three, "rows/s", ("one node", one), note=note)], small)


if __name__ == "__main__":
    main()
