"""The store that runs and models are in: opening it, its errors, and writing to it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cotd.errors import CotdError
from cotd.utils.text import first_line

BATCH = 1000  # metrics that MLflow takes at once


def quiet_mlflow() -> None:
    """MLflow without usage telemetry and without its progress bars and migration log."""
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    # A server that is down is an error at once, and not after four minutes; who follows a sweep tries again by itself.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)


def open_store(uri: str) -> Any:
    """An MLflow client of the store, which becomes the one in use; an SQLite file is made where there is none.

    One process at a time makes its tables: two that find them missing break each other.
    """
    quiet_mlflow()
    import mlflow
    from filelock import FileLock

    use_tracking(uri)
    if not uri.startswith("sqlite:///"):
        return mlflow.MlflowClient(uri, uri)
    file = Path(uri.removeprefix("sqlite:///"))
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        client = mlflow.MlflowClient(uri, uri)
        client.search_experiments(max_results=1)  # opens it: a client by itself is lazy
        return client


@contextlib.contextmanager
def friendly_errors(uri: str) -> Iterator[None]:
    """Turns MLflow's failure to reach its store into one readable message."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise CotdError(
            f"cannot use the MLflow tracking store '{uri}': {first_line(error)}. "
            "Start the server, or set tracking.uri (sqlite:///… needs no server)."
        ) from error


def use_tracking(uri: str | None) -> None:
    """Makes `uri` the tracking store and registry that `models:/…` is looked up in; None leaves it as it is."""
    quiet_mlflow()
    if not uri:
        return  # who names none may never need MLflow, which takes seconds to import
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)


def find_experiment(client: Any, uri: str, name: str, storage: Path, tags: dict[str, str] | None = None) -> str:
    """The id of an experiment, made where there is none.

    Args:
        storage: where an experiment in a database on this machine keeps its files; a server knows itself where.

    Raises:
        CotdError: it is deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage != "active":
            raise CotdError(f"the MLflow experiment '{name}' is deleted; restore it, or set tracking.experiment.")
        return found.experiment_id
    local = uri.startswith(("sqlite:", "/"))
    artifacts = (storage / "mlflow-artifacts" / name).as_uri() if local else None
    # Without its kind MLflow's page takes an experiment for one of prompts and traces, and asks.
    tags = {"mlflow.experimentKind": "custom_model_development", **(tags or {})}
    return client.create_experiment(name, artifact_location=artifacts, tags=tags)


def attempt(write: Callable[[], Any]) -> str | None:
    """Writes to MLflow; None where that worked, else the first line of what MLflow said."""
    from mlflow.exceptions import MlflowException

    try:
        write()
    except (MlflowException, OSError) as error:  # artifacts go by another way than metrics, with errors of its own
        return first_line(error)
    return None


def log_metrics(client: Any, run_id: str, metrics: Sequence[Any]) -> None:
    """Logs any number of metrics. Those that the run has already, to the millisecond, are not doubled."""
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])
