"""Processes beside the tests: servers started and ended, and those that commands under test leave behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def marked_processes(environment: dict[str, str]) -> list[psutil.Process]:
    """The processes that carry the environment's COTD_TEST_MARK."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("COTD_TEST_MARK") == environment["COTD_TEST_MARK"]:
                processes.append(process)
    return processes


def command_line(process: psutil.Process) -> str:
    """A process's command line; empty where it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def marked(environment: dict[str, str]) -> list[str]:
    """The command lines of the processes that carry the environment's COTD_TEST_MARK."""
    return [command_line(process)[:100] for process in marked_processes(environment)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_with_parent() -> None:
    """In a child, before it begins its program: it is ended when the process of the tests is, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[None]:
    """A command in a session of its own, ended with all that it started, and with the tests if they are killed."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH") and not k.startswith("MLFLOW_")}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd="/", env={**inherited, **environment}, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=end_with_parent,
        )  # fmt: skip
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(url: str, log: Path, seconds: float = 90) -> None:
    """Waits until a server answers; fails with the end of its log."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, trust_env=False).status_code < 500:  # 401: it is there, and asks for a token
                return
        time.sleep(0.5)
    raise AssertionError(f"nothing at {url}: {log.read_text()[-2000:]}")
