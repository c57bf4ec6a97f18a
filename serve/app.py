"""The Ray Serve application: one deployment that is both HTTP ingress and student, which saves a hop between processes."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
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
from serve.endpoint.endpoint import LOG, Endpoint
from serve.http.api import build_api
from serve.settings import Settings, token_digest

APP = "cotd-student"
CONTROLLER = ("serve", "SERVE_CONTROLLER_ACTOR")  # the namespace and name that Serve gives its controller
QUIET = {"log_level": "ERROR", "enable_access_log": False}


@serve.deployment(
    name="StudentServer",
    # The replica's own queue is the bound, and answers 503 in the one shape of errors. These only keep Serve's
    # proxies from holding requests back before it (the default is 5 at once), or without end.
    max_ongoing_requests=2048,
    max_queued_requests=2048,
    backpressure_config={"retry_after_s": 1},
    graceful_shutdown_timeout_s=60,  # a full queue of rationales takes as long, when replicas are taken away
    max_constructor_retry_count=2,  # a student that fails its check fails it again
)
@serve.ingress()
class StudentServer:
    """One replica."""

    def __init__(self, settings: Settings):
        LOG.setLevel(logging.INFO)
        if not ray.get_gpu_ids():  # Ray hides GPUs from who has asked for others, and not from who has asked for none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if settings.metrics_folder:  # applications of one machine may have been given the same
            own = Path(settings.metrics_folder) / re.sub(r"[^\w.-]", "_", serve.get_replica_context().app_name)
            settings = settings.model_copy(update={"metrics_folder": str(own)})
        self.endpoint = Endpoint(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return build_api(self.endpoint, proxied=True)


def build(arguments: dict[str, Any] | Settings) -> Any:
    """The application, for a Serve config: `import_path: serve.app:build`, with the fields of `Settings` as `args`.

    The token is COTD_SERVE_TOKEN of the runtime environment, unless `token_sha256` is given.

    Raises:
        ValidationError: `args` has a field that `Settings` has not, or a value that does not fit.
    """
    # Serve makes a pydantic model of `args` only where the annotation is a class. Here it is a string: annotations are
    # not evaluated in this module.
    settings = Settings.model_validate(arguments)
    settings = settings.model_copy(update={"token_sha256": settings.token_sha256 or token_digest()})
    return StudentServer.bind(settings)  # type: ignore[attr-defined]


@contextlib.contextmanager
def serving(
    settings: Settings, host: str = "127.0.0.1", port: int = 8000, replicas: int = 1, cpus: float = 1, gpus: float = 0
) -> Iterator[str]:
    """Serves a student for the duration of a block, in the running Ray.

    On the way out the application goes, and Serve with it where this block started it and nobody else uses it.

    Args:
        cpus, gpus: CPUs and GPUs a replica has.

    Yields:
        The endpoint's address, once it answers.

    Raises:
        CotdError: Ray has too few CPUs or GPUs, or the replicas do not start.
    """
    from cotd.storage.tracking_store import use_tracking
    from cotd.students.base_models import resolve_model

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    use_tracking(settings.tracking_uri)
    if not settings.student.startswith("models:/"):
        settings = settings.model_copy(update={"student": resolve_model(settings.student)})  # replicas work elsewhere
    have = ray.cluster_resources()
    problems = [
        f"{replicas} replicas of {each:g} {name}s need more than the {have.get(name, 0):g} that Ray has. "
        f"Lower --replicas or --{name.lower()}s."
        for name, each in (("CPU", cpus), ("GPU", gpus))
        if replicas * each > have.get(name, 0)
    ]
    if 0 < gpus < 1 and not problems:
        devices = sum(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])
        room = devices * int(1 / gpus + 1e-9)  # a replica is on one of them
        if replicas > room:
            problems.append(f"{replicas} replicas of {gpus:g} GPUs: {devices} GPUs hold {room}. Lower --replicas or --gpus.")
    if problems:
        raise CotdError(*problems)
    folder = settings.metrics_folder or tempfile.mkdtemp(prefix="cotd-metrics-")
    settings = settings.model_copy(update={"metrics_folder": folder})
    deployment = StudentServer.options(  # type: ignore[attr-defined]
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        graceful_shutdown_timeout_s=5,  # who presses Ctrl-C does not wait for rationales
    )
    found_serve = serve_runs()
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config=QUIET)
        try:
            serve.run(deployment.bind(settings), name=APP, route_prefix="/", logging_config=QUIET)
        except RuntimeError as error:
            raise CotdError(why_not_started(error)) from error
        if found_serve:
            require_answer(host, port)
        yield f"http://{host}:{port}"
    finally:
        end(found_serve)
        shutil.rmtree(folder, ignore_errors=True)


def why_not_started(error: RuntimeError) -> str:
    """The reason why replicas did not start: the message of our own error in what they left, else what Ray says."""
    application = serve.status().applications.get(APP)
    left = "\n".join(d.message for d in application.deployments.values()) if application else ""
    ours = re.findall(r"(?:CotdError|Unfit): (.+)", left)
    return f"the endpoint did not start: {ours[-1] if ours else str(error).strip()}"


def require_answer(host: str, port: int) -> None:
    """Raises a CotdError if the Serve that was there before listens elsewhere: it keeps the address it was started with."""
    try:
        httpx.get(f"http://{host}:{port}/healthz", trust_env=False, timeout=30)
    except httpx.TransportError as error:
        raise CotdError(
            f"Serve runs on this Ray already, at another address than {host}:{port}. Name its address by --host and --port."
        ) from error


def serve_runs() -> bool:
    """Whether the Ray that this process has joined has a Serve already."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return any((actor["namespace"], actor["name"]) == CONTROLLER for actor in actors)


def end(found_serve: bool, timeout_seconds: float = 30) -> None:
    """Ends the application; Serve too, unless it was there before or others have come to use it."""
    serve.delete(APP)
    if found_serve or serve.status().applications:
        return
    # Not `serve.shutdown()`: it waits for an answer of the controller, which ends instead of answering; Ray prints
    # that as an error, which is retried without end.
    namespace, name = CONTROLLER
    ray.get(ray.get_actor(name, namespace).graceful_shutdown.remote(wait=False))
    deadline = time.monotonic() + timeout_seconds
    while serve_runs() and time.monotonic() < deadline:
        time.sleep(0.05)
    serve.shutdown()  # the controller is gone: this only forgets it


def require_port(host: str, port: int) -> None:
    """Raises a CotdError if the address cannot be listened on."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise CotdError(
            f"cannot listen on {host}:{port} ({error.strerror}). Stop what uses the port, or choose another with --port."
        ) from error
