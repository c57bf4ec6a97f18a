"""The load of the machine that a trial runs on, sampled into a file while it trains; nothing here needs a network.

Names and units are those of MLflow's own system metrics, so that its page shows them; `process_…` are the trial's alone.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cotd.utils.background import repeating
from cotd.utils.jsonl import append_row

if TYPE_CHECKING:
    import psutil

INTERVAL = 2.0  # seconds between samples at first
# From then on a sample every hundredth of the time gone by: ten minutes give some 200 samples, ten hours some 600.
SHARE = 0.01


@contextlib.contextmanager
def sample_load(path: Path, interval: float = INTERVAL) -> Iterator[None]:
    """Appends samples of this process and its machine to a JSON-lines file during a block, and once at its end.

    A file that cannot be written or a driver that fails does not stop the block.

    Args:
        interval: seconds between samples at first.
    """
    import psutil

    process, began = psutil.Process(), time.monotonic()
    process.cpu_percent()  # the first call of either starts the period that the next one measures
    psutil.cpu_percent()

    def write() -> float:
        with contextlib.suppress(Exception):
            append_row(path, sample(process))
        return max(interval, SHARE * (time.monotonic() - began))

    try:
        with repeating(write, interval, "sample_load"):
            yield
    finally:
        write()


def sample(process: psutil.Process) -> dict[str, float]:
    """The load now, processor use being the mean since the last sample; `time` is in seconds since 1970."""
    import psutil

    memory = psutil.virtual_memory()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
        "process_cpu_utilization_percentage": process.cpu_percent(),  # 100 is one core
        "process_memory_usage_megabytes": process.memory_info().rss / 1e6,
        **gpu_load(),
    }
    return {"time": round(time.time(), 3), **{k: round(v, 1) for k, v in values.items()}}


def gpu_load() -> dict[str, float]:
    """Memory and, with NVIDIA's library, use and power of the GPUs that this process has used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():  # asking would make a context on each GPU
        return {}
    values: dict[str, float] = {}
    for number in range(torch.cuda.device_count()):
        if not torch.cuda.memory_reserved(number):
            continue  # another worker's, on which asking would make a context
        free, total = torch.cuda.mem_get_info(number)
        values[f"gpu_{number}_memory_usage_megabytes"] = (total - free) / 1e6
        values[f"gpu_{number}_memory_usage_percentage"] = (total - free) / total * 100
        # NVIDIA's own errors have no other base: some GPUs, divided ones (MIG) among them, report neither.
        with contextlib.suppress(Exception):
            values[f"gpu_{number}_utilization_percentage"] = float(torch.cuda.utilization(number))
            values[f"gpu_{number}_power_usage_watts"] = torch.cuda.power_draw(number) / 1000
    return values
