"""Memory after 100,000 requests against after 1,000: `python -m tests.benchmarks.serve.memory`; at most 20 minutes.

32 clients, a short text each, the embedded student. Counted are Serve's replica, proxy and controller and HAProxy, which
is everything that a request passes through; shared pages are divided among the processes that have them (PSS). A machine
that is too slow for 100,000 requests reports at the count that it reached, and says so.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter

import psutil

from tests.benchmarks.figures import figure, is_small, write
from tests.benchmarks.serve.servers import descendants, endpoint, load
from tests.benchmarks.students import student_folders
from tests.processes import command_line

TEXTS = ["A warm and funny film.", "Dull and lifeless.", "Not bad at all.", "I would see it again."]
WARM, WHOLE = 1_000, 100_000
BUDGET = 1200.0  # seconds for all requests
# A part of a process's command line → its role.
ROLES = {
    "ServeReplica": "replica", "ServeController": "controller", "ProxyActor": "proxy", "HAProxy": "proxy", "haproxy": "HAProxy",
}  # fmt: skip


def memory() -> tuple[Counter[str], Counter[str]]:
    """PSS and USS in MiB of the processes that a request passes through, by role."""
    pss: Counter[str] = Counter()
    uss: Counter[str] = Counter()
    for process in descendants():
        role = next((role for part, role in ROLES.items() if part in command_line(process)), None)
        with contextlib.suppress(psutil.Error):
            if role:
                used = process.memory_full_info()
                pss[role] += used.pss / 2**20
                uss[role] += used.uss / 2**20
    return pss, uss


def main() -> None:
    small = is_small(__doc__)
    warm, whole, step = (100, 400, 100) if small else (WARM, WHOLE, 9_900)
    with student_folders() as folders, endpoint(str(folders["embedded"]), "--poll-seconds", "0") as url:
        began = time.perf_counter()
        failed = load(url, TEXTS, clients=32, count=warm)["failed"]
        time.sleep(2)  # what is freed later than the last answer
        first, first_own = memory()
        done, way = warm, [f"{warm:,}: {first.total():.0f}"]
        while done < whole and (left := BUDGET - (time.perf_counter() - began)) > 0:
            seen = load(url, TEXTS, clients=32, count=min(step, whole - done), seconds=left)
            done += len(seen["milliseconds"])
            failed += seen["failed"]
            time.sleep(2)
            last, last_own = memory()
            way.append(f"{done:,}: {last.total():.0f}")
        seconds = time.perf_counter() - began
    reached = "" if done >= whole else f"; too slow here for {whole:,}"
    parts = ", ".join(f"{role} {last[role] - first[role]:+.1f} of {first[role]:.0f}" for role in sorted(first))
    write(
        "serve_memory",
        [
            figure("requests", done, "requests", note=f"{failed} failed, {done / seconds:.0f} a second{reached}"),
            figure(
                "memory_mb", last.total(), "MiB", (f"after {warm:,} requests", first.total()), note=f"PSS; {', '.join(way)}"
            ),
            figure("growth_mb", last.total() - first.total(), "MiB", note=f"PSS; {parts}"),
            figure("growth_own_mb", last_own.total() - first_own.total(), "MiB", note="USS: pages that no other process has"),
        ],
        small,
    )


if __name__ == "__main__":
    main()
