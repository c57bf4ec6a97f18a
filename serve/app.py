"""The Ray Serve application: one deployment that is both HTTP ingress and student, which saves a hop between processes."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ray
from fastapi import FastAPI
from ray import serve

from cotd.errors import CotdError
from cotd.progress import say
from serve.endpoint.endpoint import Endpoint
from serve.endpoint.served import pin
from serve.haproxy import drain_haproxy
from serve.http.api import build_api
from serve.log import LOG
from serve.settings import OWN_NAMES, Settings, is_loopback, token_digest

APP = "cotd-student"
CONTROLLER = {"namespace": "serve", "name": "SERVE_CONTROLLER_ACTOR"}  # Serve's own actor
DIED = re.compile(r"(?i)\b(ActorDiedError|ActorUnavailableError|WorkerCrashedError|OutOfMemoryError|actor (has )?died)\b")
CTRL_C_SECONDS, DRAIN_SECONDS = 5, 30  # for requests under way; Kubernetes kills what has not ended after 30 s
QUIET = {"log_level": "ERROR", "enable_access_log": False}


@serve.deployment(
    name="StudentServer",
    # The replica's own queue is the limit, and answers 503 in the one shape of errors. Serve's proxies must neither hold
    # back requests before it (by default all but 5) nor queue them without limit.
    max_ongoing_requests=2048,
    max_queued_requests=2048,
    backpressure_config={"retry_after_s": 1},
    health_check_period_s=5,  # a replica that fails three in a row is replaced
    graceful_shutdown_timeout_s=60,  # when replicas are removed: a full queue of rationales takes as long
    max_constructor_retry_count=2,  # a student that fails its check will fail again
)
@serve.ingress()
class StudentServer:
    """One replica."""

    def __init__(self, settings: Settings):
        LOG.setLevel(logging.INFO)
        if not ray.get_gpu_ids():  # Ray hides GPUs from actors that request other GPUs, but not from those that request none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if settings.metrics_folder:  # several applications of a machine may be given the same
            folder = Path(settings.metrics_folder) / re.sub(r"[^\w.-]", "_", serve.get_replica_context().app_name)
            settings = settings.model_copy(update={"metrics_folder": str(folder)})
        self.endpoint = Endpoint(settings)

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica whose student cannot compute."""
        await self.endpoint.check_health()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return build_api(self.endpoint, proxied=True)


def build(arguments: dict[str, Any] | Settings) -> Any:
    """The application, for a Serve config: `import_path: serve.app:build`, with the fields of `Settings` as `args`.

    The token is COTD_SERVE_TOKEN of the runtime environment, unless `token_sha256` is set.

    Raises:
        ValidationError: `args` has an unknown field or an invalid value.
    """
    # Validated here: Serve does so only if the annotation is a class, and here annotations are strings.
    settings = Settings.model_validate(arguments)
    settings = settings.model_copy(update={"token_sha256": settings.token_sha256 or token_digest()})
    return StudentServer.bind(settings)  # type: ignore[attr-defined]


@contextlib.contextmanager
def serving(
    settings: Settings, host: str = "127.0.0.1", port: int = 8000, replicas: int = 1, cpus: float = 1, gpus: float = 0
) -> Iterator[str]:
    """Serves a student in the running Ray for the duration of a block.

    Afterwards the application is removed, and Serve with it if this block started it and nothing else uses it.

    Args:
        cpus, gpus: CPUs and GPUs of each replica.

    Yields:
        The endpoint's address, once it responds.

    Raises:
        CotdError: Ray has too few CPUs or GPUs, or the replicas do not start.
    """
    from cotd.storage.tracking_store import use_tracking
    from cotd.students.base_models import resolve_model

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if is_loopback(host) and settings.allowed_hosts is None:
        settings = settings.model_copy(update={"allowed_hosts": OWN_NAMES})
    use_tracking(settings.tracking_uri)
    if not settings.student.startswith("models:/"):  # to an absolute path: replicas have another working directory
        settings = settings.model_copy(update={"student": resolve_model(settings.student)})
    if settings.escalate:  # to one version: it is not exchanged, and replicas that start later are to have the same
        _, pinned = pin(settings.escalate)
        larger = pinned if pinned.startswith("models:/") else resolve_model(pinned)
        settings = settings.model_copy(update={"escalate": larger})
    require_resources(replicas, cpus, gpus)
    with contextlib.ExitStack() as stack:
        if settings.metrics_folder is None:
            folder = tempfile.TemporaryDirectory(prefix="cotd-metrics-", ignore_cleanup_errors=True)
            settings = settings.model_copy(update={"metrics_folder": stack.enter_context(folder)})
        deployment = StudentServer.options(  # type: ignore[attr-defined]
            num_replicas=replicas,
            ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
            graceful_shutdown_timeout_s=CTRL_C_SECONDS,
        )
        serve_was_running = serve_is_running()
        stack.callback(shut_down, keep_serve=serve_was_running)
        if not serve_was_running:
            stack.push(drain)
        try:
            serve.start(http_options={"host": host, "port": port}, logging_config=QUIET)
            serve.run(deployment.bind(settings), name=APP, route_prefix="/", logging_config=QUIET)
        except (RuntimeError, ray.exceptions.RayError) as error:
            raise CotdError(f"the endpoint did not start: {start_error(error)}") from error
        if serve_was_running:
            require_response(host, port)
        yield address(host, port)


def drain(kind: type[BaseException] | None, *_: object) -> None:
    """Lets requests under way end, as the block of `serving` does: for seconds if Ctrl-C ended it, longer otherwise."""
    if kind in (KeyboardInterrupt, SystemExit):
        say("stopping; requests under way are answered")
    drain_haproxy(CTRL_C_SECONDS if kind is KeyboardInterrupt else DRAIN_SECONDS)


def require_resources(replicas: int, cpus: float, gpus: float) -> None:
    """Raises a CotdError, with all problems, if Ray has too few CPUs or GPUs for so many replicas of that size."""
    resources = ray.cluster_resources()
    problems = [
        f"{replicas} replicas of {each:g} {name}s need more than the {resources.get(name, 0):g} that Ray has. "
        f"Lower --replicas or --{name.lower()}s."
        for name, each in (("CPU", cpus), ("GPU", gpus))
        if replicas * each > resources.get(name, 0)
    ]
    if 0 < gpus < 1 and not problems:
        devices = sum(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])
        room = devices * int(1 / gpus + 1e-9)  # each replica uses one device
        if replicas > room:
            problems.append(f"{replicas} replicas of {gpus:g} GPUs: {devices} GPUs hold {room}. Lower --replicas or --gpus.")
    if problems:
        raise CotdError(*problems)


def start_error(error: Exception) -> str:
    """Why it did not start: the last error of cotd's in the replicas' status, that a process was killed, else what Ray says."""
    application = None
    with contextlib.suppress(Exception):  # Serve itself may have died
        application = serve.status().applications.get(APP)
    messages = "\n".join(d.message for d in application.deployments.values()) if application else ""
    errors = re.findall(r"(?:CotdError|Unfit): (.+)", messages)
    if errors:
        return errors[-1]
    if "killed by `ray.kill`" in str(error):  # by Serve's controller; see RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S
        return (
            "its proxy did not start in time, and Serve ended it: the machine is too busy. End what else runs on it, and run the "
            "same command again."
        )
    if DIED.search(messages) or DIED.search(f"{type(error).__name__} {error}"):
        return (
            "a process of it was killed while it started, as the system does when memory runs out. Free some memory, serve a "
            "smaller student, or lower --replicas. Ray's logs say more: /tmp/ray/session_latest/logs."
        )
    return str(error).strip()


def address(host: str, port: int) -> str:
    """The URL of an endpoint that listens there, for this machine."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def require_response(host: str, port: int, seconds: float = 30) -> None:
    """Waits until the proxy of a Serve that was there before knows of the endpoint, for `seconds` at most.

    Raises:
        CotdError: that Serve has another address, which it keeps.
    """
    deadline = time.monotonic() + seconds
    try:
        while httpx.get(f"{address(host, port)}/healthz", trust_env=False, timeout=30).status_code != 200:
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
    except httpx.TransportError as error:
        raise CotdError(
            f"Serve is already running on this Ray, at another address than {host}:{port}. Give its address: --host and --port."
        ) from error


def serve_is_running() -> bool:
    """Whether Ray has a Serve."""
    return CONTROLLER in ray.util.list_named_actors(all_namespaces=True)


def shut_down(keep_serve: bool, timeout_seconds: float = 30) -> None:
    """Removes the application, and Serve unless it is to be kept or has other applications."""
    serve.delete(APP)
    if keep_serve or serve.status().applications:
        return
    # Not `serve.shutdown()`, which waits for a reply of the controller: that ends without one, and Ray prints an error.
    ray.get(ray.get_actor(**CONTROLLER).graceful_shutdown.remote(wait=False))
    deadline = time.monotonic() + timeout_seconds
    while serve_is_running() and time.monotonic() < deadline:
        time.sleep(0.05)
    serve.shutdown()  # the controller is gone: this only resets Serve's state in this process


def require_port(host: str, port: int) -> None:
    """Raises a CotdError if this process cannot listen on the address."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise CotdError(
            f"cannot listen on {host}:{port} ({error.strerror}). Stop what uses the port, or choose another with --port."
        ) from error
