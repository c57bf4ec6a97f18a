"""Runs a check against the stand-in hub in a process of its own, as libraries read HF_ENDPOINT when they are imported.

`python -m tests.hub.child MODULE FUNCTION` calls a function of a test module and prints the JSON that it returns.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hub.server import Hub

ROOT = Path(__file__).parents[2]
# What `datasets` makes of HF_ENDPOINT for the hub's data set viewer, without which it does.
VIEWER = "datasets-server.127.0.0.1"
Check = Callable[[], dict[str, Any]]


def refusal(action: Callable[[], Any]) -> dict[str, Any]:
    """The type and message of the exception that an action raises; type None if it raises none."""
    try:
        action()
    except Exception as error:  # noqa: BLE001
        return {"type": type(error).__name__, "message": str(error)}
    return {"type": None, "message": ""}


def run_check(check: Check, hub: Hub, home: Path) -> dict[str, Any]:
    """The result of a check, run in a child with an empty cache in `home`; `strangers` are other hosts that it looked up."""
    inherited = {k: v for k, v in os.environ.items() if not (k.lower().endswith("_proxy") or k.startswith(("HF_", "MLFLOW_")))}
    env = inherited | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "DISABLE_SAFETENSORS_CONVERSION": "1", "STAND_IN_UPLOADS": str(hub.uploads), "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-P", "-m", "tests.hub.child", check.__module__, check.__name__]
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def cotd(*arguments: str) -> dict[str, Any]:
    """The command line, in this process."""
    from cotd.cli.app import main

    sys.argv = ["cotd", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def guard_names() -> list[str]:
    """From here on no host but 127.0.0.1 is looked up; returns the list of the others asked for, which grows."""
    strangers: list[str] = []
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name not in ("127.0.0.1", "localhost", "None"):
            strangers.append(name)
            raise socket.gaierror(socket.EAI_NONAME, "no host but the stand-in is asked")
        return look_up(host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo
    return strangers


if __name__ == "__main__":
    strangers = guard_names()
    check: Check = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
    print("\n" + json.dumps(check() | {"strangers": strangers}))
