"""What a person on call wants to see, for Prometheus."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
HERE = ".here"  # what the file is called by which a replica says that it is there
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The endpoint's counters, gauges and histograms.

    A scrape goes to whichever replica the proxy picks. The replicas of one machine therefore keep their figures in
    files of a common folder (prometheus_client's multiprocess mode), which any of them adds up.

    Args:
        folder: the common folder, of one application. Made where there is none; emptied of figures where all processes
            that they are of have ended. Without one the figures are this process's own.
    """

    def __init__(self, folder: str | None = None):
        self.folder = Path(folder) if folder else None
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._join(self.folder)
            os.environ[FOLDER_VARIABLE] = str(self.folder)  # read once, when prometheus_client is imported
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("cotd_requests", "Requests answered", ["method", "route", "status"], **made)
        self.request_seconds = Histogram(
            "cotd_request_seconds", "From a request's arrival at the replica to its answer", ["route"], buckets=SECONDS, **made
        )
        self.in_flight = Gauge("cotd_requests_in_flight", "Requests being answered", multiprocess_mode="livesum", **made)
        self.queued = Gauge("cotd_queued_texts", "Texts that wait for the model", ["work"], multiprocess_mode="livesum", **made)
        self.batch_texts = Histogram("cotd_batch_texts", "Texts a batch", ["work"], buckets=BATCH, **made)
        self.batch_seconds = Histogram("cotd_batch_seconds", "Seconds a batch", ["work"], buckets=SECONDS, **made)
        self.predictions = Counter("cotd_predictions", "Texts classified", ["label", "model_version"], **made)
        self.truncated = Counter("cotd_truncated_texts", "Texts longer than the student reads", **made)
        self.model_replicas = Gauge(
            "cotd_model_replicas", "Replicas that serve a model", ["name", "version", "runtime"], multiprocess_mode="livesum",
            **made,
        )  # fmt: skip
        self.swaps = Counter("cotd_model_swaps", "Looks at a moved alias, by outcome", ["outcome"], **made)
        for outcome in ("swapped", "refused", "not_loaded", "registry_unreachable"):
            self.swaps.labels(outcome)

    def _join(self, folder: Path) -> None:
        """Begins anew if nobody is left: else every replica that ever was would have its files added up at each scrape."""
        from filelock import FileLock

        with FileLock(folder / ".lock"):
            files = [*folder.glob("*_*.db"), *folder.glob(f"*_*{HERE}")]
            if not any(alive(pid_of(path)) for path in files):
                for path in files:
                    path.unlink(missing_ok=True)
            (folder / f"replica_{os.getpid()}{HERE}").touch()  # counted as living before its figures are there

    def render(self) -> tuple[bytes, str]:
        """Every replica's figures in Prometheus's text format, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

        if self.folder is None:
            return generate_latest(self.registry), CONTENT_TYPE_LATEST
        for path in self.folder.glob("gauge_live*.db"):
            pid = pid_of(path)
            if not alive(pid):  # a replica that was killed: its queue is gone
                mark_process_dead(pid, str(self.folder))
        everything = CollectorRegistry()
        MultiProcessCollector(everything, path=str(self.folder))
        return generate_latest(everything), CONTENT_TYPE_LATEST


def alive(pid: int) -> bool:
    """Whether there is such a process, other than one that has ended and that its parent has not asked about yet."""
    import psutil

    try:
        return pid > 0 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def pid_of(path: Path) -> int:
    """The process that a file is of, as prometheus_client names them: gauge_livesum_PID.db; 0 for another's file."""
    number = path.stem.rsplit("_", 1)[1]
    return int(number) if number.isdecimal() else 0
