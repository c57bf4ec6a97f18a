"""A Ray session: joining a cluster or starting one here, and leaving no process behind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cotd.errors import CotdError
from cotd.progress import is_verbose, say
from pipelines.cluster.runtime_env import runtime_env

STARTS = 3
SLOW_START = "timed out during startup"  # what Ray says, in an error of no kind of its own
# Every process that Ray or vLLM starts inherits this variable, so that one whose parent has died can be found, too.
MARKER = "COTD_SESSION"

# The environment of workers, on every node.
WORKER_ENVIRONMENT = {
    # By default glibc returns large tensors to the kernel at once and faults them in again: a training step takes 10 to 25 %
    # longer (measured). 32 MiB is the largest threshold it accepts.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    # oneDNN, and PyTorch for it, cache what they compile for 1,024 shapes of bfloat16 products, and training has new shapes at
    # each step: a worker that trained an embedded student grew from 1.2 to 5 GB (measured). A step has about 80 shapes.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}
# The environment of all Ray processes started here, where it is not set already.
ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # else its core warns of every actor of Ray Data
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's default of 15 lets anything else slow its workers
    # Without a dashboard nobody sees metrics, and collecting them in ten processes delays an engine that uses every core.
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    **WORKER_ENVIRONMENT,
}
SHARED_TIMEOUT = 120.0  # seconds for a node to start a worker that looks for a file


def start_ray(arguments: dict[str, Any], verbose: bool) -> None:
    """`ray.init`, tried again where a busy machine does not start Ray's processes in the half minute that Ray gives them.

    Raises:
        CotdError: they did not start in time however often it was tried.
    """
    import ray

    for attempt in range(1, STARTS + 1):
        try:
            with contextlib.nullcontext() if verbose else silenced_stderr():
                ray.init(**arguments)
            return
        except Exception as error:
            if SLOW_START not in str(error):
                raise
            with contextlib.suppress(Exception):
                ray.shutdown()
            if attempt == STARTS:
                raise CotdError(
                    f"Ray did not start in {STARTS} attempts of half a minute: the machine is too busy, or short of memory. "
                    "End what else runs on it, and run the same command again: it continues where it was."
                ) from error
            say(f"  Ray did not start in half a minute, as the machine is busy; attempt {attempt + 1} of {STARTS}")


@contextlib.contextmanager
def ray_session(**init: Any) -> Iterator[None]:
    """Ray for the duration of a block: the cluster that RAY_ADDRESS names ("auto": one that runs here), else one of its own.

    Left to itself, Ray would also join what another command started on this machine, and end with it. Workers of a joined
    cluster run this process's own code, which travels there. At the end a local Ray is shut down and every process it left
    is ended; SIGTERM leads to the same orderly end. Nested use joins the outer session.

    Raises:
        CotdError: RAY_ADDRESS names what cannot be joined.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    environment = runtime_env(address, WORKER_ENVIRONMENT)
    if verbose := is_verbose():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "warning")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    mark = os.environ[MARKER] = uuid.uuid4().hex
    previous = install_terminate_handler()
    defaults: dict[str, Any] = {"runtime_env": environment} if environment else {}
    level = logging.INFO if verbose else logging.ERROR
    defaults |= {"include_dashboard": False, "log_to_driver": verbose, "logging_level": level}
    try:
        try:
            start_ray({"address": address, **defaults, **init}, verbose)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise CotdError(
                f"cannot join Ray at {address}: {error}. Start it, or unset RAY_ADDRESS for a local one."
            ) from error
        install_terminate_handler()  # Ray's core has put its own in place, which aborts
        quiet_ray_data()
        yield
    except (KeyboardInterrupt, SystemExit):
        say("stopping; Ray's processes are ended")  # which takes seconds
        raise
    finally:
        with ignore_interrupts():
            ray.shutdown()
            end_marked(mark)
        os.environ.pop(MARKER, None)
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Drops what native code writes to the error stream: Ray's core announces its log level there. Errors are raised."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def install_terminate_handler() -> Any:
    """Makes SIGTERM raise SystemExit, which runs `finally` blocks; returns the previous handler."""

    def terminate(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    try:
        return signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread
        return None


@contextlib.contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Lets cleaning up finish when Ctrl-C is pressed, or SIGTERM is sent, a second time."""
    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, signal.SIG_IGN)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def marked_processes(mark: str) -> list[Any]:
    """The processes of a session, other than this one."""
    import psutil

    marked = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARKER) == mark:
                marked.append(process)
    return marked


def end_marked(mark: str, grace_seconds: float = 5.0) -> None:
    """Ends the processes of a session: those that have not ended by themselves after the grace period are killed."""
    import psutil

    deadline = time.monotonic() + grace_seconds
    while (left := marked_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def quiet_ray_data() -> None:
    """Turns off Ray Data's own progress bars: the stages show one of their own."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_rich_progress_bars = False
    if not is_verbose():
        logging.getLogger("ray.data").setLevel(logging.ERROR)


def require_shared(path: Path) -> None:
    """Refuses a cluster with a node that may run trials and does not see a file of the study.

    Raises:
        CotdError: with the address of each such node, and of each that does not respond in time.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU") and n["NodeID"] != here]
    sees_file = ray.remote(num_cpus=0, max_retries=0)(Path.is_file)
    pending = {}
    for node in nodes:
        placement = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        pending[sees_file.options(scheduling_strategy=placement).remote(path)] = node["NodeManagerAddress"]
    if not pending:
        return
    responses, silent = ray.wait(list(pending), num_returns=len(pending), timeout=SHARED_TIMEOUT)
    blind = []
    for response in responses:
        with contextlib.suppress(RayError):  # a node that has left the cluster meanwhile
            if not ray.get(response):
                blind.append(pending[response])
    problems = []
    if blind:
        problems.append(
            f"{path} is not seen from {', '.join(sorted(blind))}. Trials run there: set storage to a folder that every node "
            "of the cluster shares."
        )
    if silent:
        problems.append(
            f"nodes of the cluster do not respond: {', '.join(sorted(pending[s] for s in silent))} have not started a worker within "
            f"{SHARED_TIMEOUT:.0f} s. Remove them from the cluster, or run again when they respond."
        )
    if problems:
        raise CotdError(*problems)
