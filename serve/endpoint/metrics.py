"""Prometheus metrics of the endpoint, added up over the replicas of a machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cotd.errors import CotdError

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
ALIVE = ".alive"  # suffix of the file that announces a replica
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The endpoint's counters, gauges and histograms.

    A scrape goes to whichever replica the proxy picks. The replicas of one machine therefore keep their figures in
    files of a shared folder (prometheus_client's multiprocess mode), which any of them adds up.

    Args:
        folder: the shared folder, of one application; created if needed, and emptied if all its processes have ended.
            Without one, the figures are this process's own.
    """

    def __init__(self, folder: str | None = None):
        self.folder = Path(folder).expanduser() if folder else None
        if self.folder:
            make_private(self.folder)
            self._join(self.folder)
            os.environ[FOLDER_VARIABLE] = str(self.folder)  # read once, when prometheus_client is imported
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("cotd_requests", "Requests answered", ["method", "route", "status"], **options)
        self.request_seconds = Histogram(
            "cotd_request_seconds",
            "From a request's arrival at the replica to its answer",
            ["route"],
            buckets=SECONDS,
            **options,
        )
        self.in_flight = Gauge("cotd_requests_in_flight", "Requests being answered", multiprocess_mode="livesum", **options)
        self.queued = Gauge(
            "cotd_queued_texts", "Texts that wait for the model", ["work"], multiprocess_mode="livesum", **options
        )
        self.batch_texts = Histogram("cotd_batch_texts", "Texts a batch", ["work"], buckets=BATCH_SIZES, **options)
        self.batch_seconds = Histogram("cotd_batch_seconds", "Seconds a batch", ["work"], buckets=SECONDS, **options)
        self.predictions = Counter(
            "cotd_predictions",
            "Texts predicted, by label, by the letter of the option, or by whether they were answered",
            ["label", "model_version"],
            **options,
        )
        self.escalated = Counter("cotd_escalated_texts", "Texts that the larger student of a cascade answered", **options)
        self.truncated = Counter("cotd_truncated_texts", "Texts longer than the student reads", **options)
        self.unread = Counter("cotd_unread_texts", "Texts with characters that the student cannot read", **options)
        self.model_replicas = Gauge(
            "cotd_model_replicas", "Replicas that serve a model", ["name", "version", "runtime"], multiprocess_mode="livesum",
            **options,
        )  # fmt: skip
        self.swaps = Counter("cotd_model_swaps", "Attempts to follow a moved alias, by outcome", ["outcome"], **options)
        for outcome in ("swapped", "refused", "not_loaded", "registry_unreachable"):
            self.swaps.labels(outcome)

    def _join(self, folder: Path) -> None:
        """Starts from zero if no replica is alive; otherwise files of all earlier replicas would be added up at each scrape."""
        from filelock import FileLock

        with FileLock(folder / ".lock"):
            files = [*folder.glob("*_*.db"), *folder.glob(f"*_*{ALIVE}")]
            if not any(alive(pid_of(path)) for path in files):
                for path in files:
                    path.unlink(missing_ok=True)
            (folder / f"replica_{os.getpid()}{ALIVE}").touch()  # alive before it has figures

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


def make_private(folder: Path) -> None:
    """Creates a folder that only this user can write to.

    Raises:
        CotdError: it is there and others can: they could name the student that is loaded, see `serve.endpoint.last_good`.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise CotdError(
            f"metrics_folder: other users can write to {folder}. Name a folder of your own, or run: chmod go-w {folder}"
        )


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but has not been waited for (a zombie) does not."""
    import psutil

    try:
        return pid > 0 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def pid_of(path: Path) -> int:
    """The process that wrote a file, as prometheus_client names them: gauge_livesum_PID.db; 0 for any other file."""
    number = path.stem.rsplit("_", 1)[1]
    return int(number) if number.isdecimal() else 0
