"""The faults: what is killed, filled, slowed down or stopped. Those that pass are put right again after a while."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import psutil

from tests.chaos.world import World

Fault = Callable[[World, random.Random, "subprocess.Popen[bytes] | None"], str]
WORKERS = ("ray::ImplicitFunc", "ray::run_trial", "ray::_RayTrainWorker", "ray::Asking", "ray::Engine")


def later(here: World, seconds: float, undo: Callable[[], None]) -> None:
    """Puts something right after so many seconds."""

    def wait() -> None:
        if not here.ending.wait(seconds):
            undo()

    threading.Thread(target=wait, daemon=True).start()


def kill_driver(here: World, draw: random.Random, command: subprocess.Popen[bytes] | None) -> str:
    if command is None or command.poll() is not None:
        return ""
    command.kill()
    return f"killed the command, process {command.pid}"


def kill_one(here: World, draw: random.Random, mark: str, *names: str) -> str:
    alive = here.processes(mark, *names)
    if not alive:
        return ""
    victim = draw.choice(alive)
    with contextlib.suppress(psutil.Error):
        name = victim.cmdline()[0]
        victim.kill()
        return f"killed {name.rpartition('/')[2]}, process {victim.pid}"
    return ""


def kill_worker(here: World, draw: random.Random, command: subprocess.Popen[bytes] | None) -> str:
    return kill_one(here, draw, here.commands, *WORKERS)


def kill_raylet(here: World, draw: random.Random, command: subprocess.Popen[bytes] | None) -> str:
    raylets = [p for p in here.processes(here.commands) if p.name() == "raylet"]
    for raylet in raylets[:1]:
        raylet.kill()
    return f"killed the raylet, process {raylets[0].pid}" if raylets else ""


def kill_replica(here: World, draw: random.Random, command: subprocess.Popen[bytes] | None) -> str:
    deadline = time.monotonic() + 120
    while here.replicas() < 2:  # a service of one replica would be away until there is another
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.5)
    return kill_one(here, draw, here.servers, "ray::ServeReplica")


def kill_mlflow(here: World, draw: random.Random, command: subprocess.Popen[bytes] | None) -> str:
    seconds = draw.uniform(1, 8)
    if here.mlflow is None or here.mlflow.poll() is not None:  # it is away
        return ""
    here.stop_mlflow()
    later(here, seconds, here.start_mlflow)
    return f"killed the MLflow server, which is away for {seconds:.0f} s"


def stop_store(here: World, draw: random.Random, command: subprocess.Popen[bytes] | None) -> str:
    seconds = draw.uniform(2, 8)
    (server,) = [p for p in psutil.Process().children() if "moto.server" in " ".join(p.cmdline())]
    server.send_signal(signal.SIGSTOP)
    later(here, seconds, lambda: server.send_signal(signal.SIGCONT))
    return f"stopped the object store for {seconds:.0f} s"


def fail_store(here: World, draw: random.Random, command: subprocess.Popen[bytes] | None) -> str:
    seconds = draw.uniform(3, 10)
    here.store.fails = lambda method, path, number: number % 3 == 0
    later(here, seconds, lambda: setattr(here.store, "fails", lambda method, path, number: False))
    return f"the object store refuses every third request for {seconds:.0f} s"


def slow_network(here: World, draw: random.Random, command: subprocess.Popen[bytes] | None) -> str:
    seconds = draw.uniform(3, 10)
    here.store.delay = lambda method, path: 0.5
    later(here, seconds, lambda: setattr(here.store, "delay", lambda method, path: 0.0))
    return f"every request to the object store takes half a second more for {seconds:.0f} s"


def fail_teacher(here: World, draw: random.Random, command: subprocess.Popen[bytes] | None) -> str:
    seconds, fault = draw.uniform(2, 8), draw.choice(["429_seconds", "500", "malformed", "truncated"])
    here.teacher.fault = lambda prompt, tries: fault
    later(here, seconds, here.answer_well)
    return f"the teacher answers with {fault} for {seconds:.0f} s"


def fill_disk(here: World, draw: random.Random, command: subprocess.Popen[bytes] | None) -> str:
    if not here.disk_can_fill:
        return ""
    seconds, filler = draw.uniform(3, 10), here.disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while shutil.disk_usage(here.disk).free:
            file.write(bytes(2**20))
            file.flush()
    later(here, seconds, lambda: filler.unlink(missing_ok=True))
    return f"filled the disk for {seconds:.0f} s"


STORE: list[Fault] = [stop_store, fail_store, slow_network]
# Stage → the faults that may happen while it runs.
FAULTS: dict[str, list[Fault]] = {
    "annotate": [kill_driver, kill_driver, fail_teacher, fill_disk, kill_mlflow, *STORE],
    "sweep": [kill_driver, kill_worker, kill_worker, kill_raylet, fill_disk, kill_mlflow, *STORE],
    "promote": [kill_driver, kill_mlflow, *STORE],
    "serve": [kill_replica, kill_replica, kill_mlflow],
}
# Seconds between the start of a stage, or the fault before, and a fault.
WHEN: dict[str, tuple[float, float]] = {"annotate": (4, 12), "sweep": (8, 30), "promote": (4, 10), "serve": (4, 8)}
