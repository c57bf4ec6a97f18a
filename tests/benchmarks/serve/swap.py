"""Failed requests during hot swaps and kills of replicas: `python -m tests.benchmarks.serve.swap`; nine minutes.

Two replicas of each student under steady load at half of what they can take. First the alias moves to and fro, each time
until both replicas serve the new version; these requests are sent once. Then replicas are killed with SIGKILL,
each time until there are two again; here clients try again as `serve.client` does by default.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow

from cotd.storage.tracking_store import use_tracking
from tests.benchmarks.figures import figure, is_small, scratch_folder, write
from tests.benchmarks.serve.servers import descendants, endpoint, finish_load, load, metrics, start_load, summarise
from tests.benchmarks.students import example_texts, student_folders
from tests.processes import command_line

NAME = "cotd-student"
REPLICAS = 2
RETRIES = 3  # the default of serve.client


def serving_replicas(url: str) -> dict[str, float]:
    """version → number of replicas that report it; empty while the endpoint does not respond."""
    matches = {re.match(r'cotd_model_replicas\{.*version="(\w+)"\}', name): count for name, count in metrics(url).items()}
    return {match[1]: count for match, count in matches.items() if match}


def replica_pids() -> set[int]:
    """The replicas among this process's descendants: Ray names a replica's process after its actor."""
    return {process.pid for process in descendants() if "ServeReplica" in command_line(process)}


def wait_until(what: str, seconds: float, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"after {seconds:.0f} s still waiting until {what}")
        time.sleep(0.1)


def measure(folder: Path, scratch: Path, swaps: int, kills: int, seconds: float) -> dict[str, Any]:
    """The load generator's outcome of swaps, then of kills, of an endpoint of one student."""
    texts = example_texts()
    uri = f"sqlite:///{scratch / 'mlflow.db'}"
    use_tracking(uri)
    client = mlflow.MlflowClient(uri, uri)
    client.create_registered_model(NAME)
    versions = [str(client.create_model_version(NAME, folder.as_uri()).version) for _ in range(2)]
    client.set_registered_model_alias(NAME, "champion", versions[0])
    options = ["--replicas", str(REPLICAS), "--cpus", "1", "--poll-seconds", "0.5", "--tracking-uri", uri]
    with endpoint(f"models:/{NAME}@champion", *options) as url:
        wait_until("there are two replicas", 60, lambda: sum(serving_replicas(url).values()) >= REPLICAS)
        saturation = load(url, texts, clients=32, seconds=seconds)["rate"]
        steady = {"clients": 16, "rate": saturation / 2}
        sending = start_load(url, texts, **steady)
        for number in range(1, swaps + 1):
            version = versions[number % 2]
            client.set_registered_model_alias(NAME, "champion", version)
            wait_until("all replicas have changed", 120, lambda v=version: serving_replicas(url).get(v) == REPLICAS)  # type: ignore[misc]
            time.sleep(0.5)
        swapped = summarise(finish_load(sending))
        sending = start_load(url, texts, retries=RETRIES, **steady)
        for _ in range(kills):
            time.sleep(1)
            victim = min(replica_pids())
            os.kill(victim, signal.SIGKILL)
            # Both must serve again before the next one dies.
            wait_until("the replica is replaced", 120, lambda v=victim: len(replica_pids() - {v}) >= REPLICAS)  # type: ignore[misc]
            wait_until("both replicas serve", 120, lambda: sum(serving_replicas(url).values()) >= REPLICAS)
        killed = summarise(finish_load(sending))
    return {"rate": saturation / 2, "swapped": swapped, "killed": killed}


def main() -> None:
    small = is_small(__doc__)
    swaps, kills = (2, 1) if small else (20, 5)
    figures, all_seen = [], []
    with student_folders() as folders, scratch_folder() as scratch:
        for size, folder in folders.items():
            (place := scratch / size).mkdir()
            seen = measure(folder, place, swaps, kills, 2 if small else 10)
            all_seen.append(seen)
            swapped, killed = seen["swapped"], seen["killed"]
            rate = ("half of saturation", seen["rate"])
            waits = f"median {swapped['median']:.0f} ms, 99th percentile {swapped['p99']:.0f} ms"
            figures += [
                figure(f"swaps_{size}", swaps, "swaps", note=f"versions answered: {swapped['versions']}"),
                figure(f"swap_requests_{size}", len(swapped["milliseconds"]), "requests", note=waits),
                figure(f"swap_rate_{size}", swapped["rate"], "1/s", rate, note="reached while the alias moved"),
                figure(f"swap_failed_{size}", swapped["failed"], "requests", note=f"sent once; statuses: {swapped['statuses']}"),
                figure(f"replica_kills_{size}", kills, "kills", note=f"{len(killed['milliseconds'])} requests"),
                figure(f"kill_rate_{size}", killed["rate"], "1/s", rate, note="reached while replicas died"),
                figure(
                    f"kill_failed_after_retry_{size}", killed["failed"], "requests",
                    note=f"retried as serve.client does, {RETRIES} times at most; every attempt: {killed['statuses']}",
                ),
            ]  # fmt: skip
    both = "of both students"
    totals = [
        figure("swaps", swaps * len(all_seen), "swaps", note=both),
        figure("swap_requests", sum(len(s["swapped"]["milliseconds"]) for s in all_seen), "requests", note=both),
        figure("swap_failed", sum(s["swapped"]["failed"] for s in all_seen), "requests", note=both),
        figure("replica_kills", kills * len(all_seen), "kills", note=both),
        figure("kill_failed_after_retry", sum(s["killed"]["failed"] for s in all_seen), "requests", note=both),
    ]
    write("serve_swap", totals + figures, small)


if __name__ == "__main__":
    main()
