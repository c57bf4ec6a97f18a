"""What Ray Serve reads from the environment; to be set before Ray and Serve are imported or started."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile


def joins_ray() -> bool:
    """Whether a Ray is named that this process is to join: its Serve, if it has one, has its address already."""
    return os.environ.get("RAY_ADDRESS", "local") != "local"


def prefer_haproxy() -> None:
    """Has the Ray that this process starts put HAProxy in front of replicas, instead of Serve's proxy in Python.

    A refused request, which costs the endpoint nothing, takes 1.5 ms instead of 18.5 (median of one client, two busy
    cores). HAProxy comes with `ray[serve]`. Files and ports are this process's own, so that endpoints do not meet; the
    ports of its statistics listen on all interfaces, as Ray's own do. What is set already stays; 0 turns it off:
    RAY_SERVE_ENABLE_HA_PROXY=0. A cluster that is joined keeps the proxy it has.
    """
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "1") != "1" or joins_ray():
        return
    folder = tempfile.mkdtemp(prefix="cotd-haproxy-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("", 0))
        statistics, metrics = one.getsockname()[1], other.getsockname()[1]
    for name, value in {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # saves a hop: the API never blocks its loop
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # 30 otherwise, at every end
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Seconds for which a client may be silent where it is its turn: with half a request head, for one. An hour
        # otherwise. While the student writes, it is not the client's turn.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    }.items():
        os.environ.setdefault(name, value)
