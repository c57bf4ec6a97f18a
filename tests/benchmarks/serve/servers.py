"""The servers under load: `cotd serve`, and what a user would put together without it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from tests.benchmarks.students import CORES
from tests.processes import free_port


@contextlib.contextmanager
def running(command: list[str], url: str) -> Iterator[subprocess.Popen[str]]:
    """A server in a process of its own, once it responds; ended by Ctrl-C."""
    with tempfile.TemporaryFile("w+") as log:  # not a pipe: it would fill, as nobody reads it meanwhile
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, "RAY_ADDRESS": "local"},  # not another Ray on this machine
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # type: ignore[arg-type, return-value]
        )
        try:
            deadline = time.monotonic() + 180
            while not is_healthy(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{' '.join(command)} did not come up:\n{log.read()}")
                time.sleep(0.2)
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Ends a server by Ctrl-C; what is left of it and its descendants after a while is killed."""
    family = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(family, timeout=10)
    for survivor in left:
        with contextlib.suppress(psutil.Error):
            survivor.kill()


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """The processes that a process (this one by default) has started, and those that they have, without the ended ones."""
    family = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    family.append(process)
    return family


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def metrics(url: str) -> dict[str, float]:
    """The endpoint's metrics: `name{labels}` → value; empty while it does not respond."""
    try:
        response = httpx.get(f"{url}/metrics", trust_env=False, timeout=30)
    except httpx.TransportError:
        return {}
    if response.status_code != 200:
        return {}
    return {name: float(value) for name, value in re.findall(r"^(cotd_\S+) (\S+)$", response.text, re.MULTILINE)}


@contextlib.contextmanager
def endpoint(student: str, *options: str) -> Iterator[str]:
    """`cotd serve` with all cores for one replica, unless the options say otherwise; yields its address."""
    port = free_port()
    cpus = [] if "--cpus" in options else ["--cpus", str(CORES)]
    command = ["-m", "cotd.cli", "serve", "--student", student, "--port", str(port), *cpus, *options]
    with running(command, url := f"http://127.0.0.1:{port}"):
        yield url


@contextlib.contextmanager
def usual_alternative(student: Path) -> Iterator[str]:
    """`tests.benchmarks.serve.alternative`; yields its address."""
    port = free_port()
    with running(["-m", "tests.benchmarks.serve.alternative", str(student), str(port)], url := f"http://127.0.0.1:{port}"):
        yield url


def start_load(url: str, texts: list[str], **options: Any) -> subprocess.Popen[str]:
    """The load generator; `finish_load` ends it and returns its outcome."""
    plain = json.dumps({"url": url, "texts": texts, **options})
    command = [sys.executable, "-m", "tests.benchmarks.serve.load", plain]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish_load(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate("", timeout=300)
    return json.loads(output)


def load(url: str, texts: list[str], **options: Any) -> dict[str, Any]:
    """Load for `seconds`, or of `count` requests; its outcome, as of `summarise`."""
    return summarise(finish_load(start_load(url, texts, **options)))


def summarise(seen: dict[str, Any]) -> dict[str, Any]:
    """The load generator's outcome, with `mean`, `median`, `p99` (ms) and `rate` (successful requests a second)."""
    milliseconds = np.array(seen["milliseconds"])
    seen["mean"] = float(milliseconds.mean())
    seen["median"], seen["p99"] = (float(np.percentile(milliseconds, q)) for q in (50, 99))
    seen["rate"] = seen["statuses"].get("200", 0) / seen["seconds"]
    return seen
