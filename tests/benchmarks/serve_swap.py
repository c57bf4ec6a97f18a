"""Failed requests during hot swaps and kills of replicas: `python -m tests.benchmarks.serve_swap`; six minutes.

Two replicas of the embedded student under steady load at half of what they can take. First the alias moves to and
fro, each time until both replicas answer with the new version; these requests are sent once. Then replicas are killed
with SIGKILL, each time until there are two again; here clients try again, as `serve.client` does.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from pathlib import Path

import httpx
import mlflow
import psutil

from cotd.tracking import use_tracking
from tests.benchmarks.figures import arguments, figure, write  # fmt: skip
from tests.benchmarks.serving import endpoint, finish_load, load, review_texts, start_load, student_folders

NAME = "cotd-student"
REPLICAS = 2


def serving_replicas(url: str) -> dict[str, float]:
    """version → how many replicas say that they serve it."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=30).text
    found = re.findall(r'^cotd_model_replicas\{.*version="(\w+)"\} ([\d.]+)', text, re.MULTILINE)
    return {version: float(count) for version, count in found}


def replica_processes() -> list[psutil.Process]:
    """Ray names a replica's process after its actor; only this process's own descendants count."""
    descendants = psutil.Process().children(recursive=True)
    return [p for p in descendants if p.is_running() and any("ServeReplica" in part for part in p.cmdline())]


def wait_until(what: str, seconds: float, holds) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"after {seconds:.0f} s still waiting until {what}")
        time.sleep(0.1)


def main() -> None:
    small = arguments(__doc__ or "").small
    swaps, kills = (2, 1) if small else (20, 5)
    texts = review_texts()
    with student_folders() as folders, tempfile.TemporaryDirectory(prefix="cotd-bench-") as scratch:
        uri = f"sqlite:///{Path(scratch) / 'mlflow.db'}"
        use_tracking(uri)
        client = mlflow.MlflowClient(uri, uri)
        client.create_registered_model(NAME)
        versions = [str(client.create_model_version(NAME, folders["embedded"].as_uri()).version) for _ in range(2)]
        client.set_registered_model_alias(NAME, "champion", versions[0])
        options = ["--replicas", str(REPLICAS), "--cpus", "1", "--poll-seconds", "0.5", "--tracking-uri", uri]
        with endpoint(f"models:/{NAME}@champion", *options) as url:
            saturation = load(url, texts, clients=32, seconds=2 if small else 10)["rate"]
            steady = {"clients": 16, "rate": saturation / 2}
            sending = start_load(url, texts, **steady)
            for number in range(1, swaps + 1):
                version = versions[number % 2]
                client.set_registered_model_alias(NAME, "champion", version)
                wait_until("all replicas have changed", 60, lambda v=version: serving_replicas(url).get(v) == REPLICAS)
                time.sleep(1)
            swapped = finish_load(sending)
            sending = start_load(url, texts, retries=5, **steady)
            for _ in range(kills):
                time.sleep(2)
                victim = replica_processes()[0]
                os.kill(victim.pid, signal.SIGKILL)
                # Both must serve again before the next one dies.
                wait_until("the replica is replaced", 120, lambda v=victim: not v.is_running() or v.status() == "zombie")
                wait_until("there are two replicas", 120, lambda: sum(serving_replicas(url).values()) >= REPLICAS)
            killed = finish_load(sending)
    note = f"{saturation / 2:.0f} requests a second, half of saturation"
    seen = f"first answers: {killed['statuses']}"
    write(
        "serve_swap",
        [
            figure("swaps", swaps, "swaps", note=f"versions answered: {swapped['versions']}"),
            figure("swap_requests", len(swapped["milliseconds"]), "requests", note=note),
            figure("swap_failed", swapped["failed"], "requests", note=f"statuses: {swapped['statuses']}"),
            figure("replica_kills", kills, "kills", note=f"{len(killed['milliseconds'])} requests, {seen}"),
            figure("kill_failed_after_retry", killed["failed"], "requests", note="at most 5 retries each"),
        ],
        small,
    )


if __name__ == "__main__":
    main()
