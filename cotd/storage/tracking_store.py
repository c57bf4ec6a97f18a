"""The MLflow store that runs and models are in: which one, opening it, and its errors."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cotd.errors import CotdError
from cotd.utils.text import first_line

SQLITE = "sqlite:///"


def default_tracking_uri(folder: str | Path = "runs") -> str:
    """The store where none is named: MLFLOW_TRACKING_URI, else a database in a folder of studies."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{Path(folder).absolute() / 'mlflow.db'}"


def quiet_mlflow() -> None:
    """Sets MLflow to send no usage telemetry, show no progress bars, log no migrations, and give up soon."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    # A server that is down is an error at once, not after four minutes; what follows a sweep tries again by itself.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)


def use_tracking(uri: str | None) -> None:
    """Makes `uri` the tracking store and registry that `models:/…` is looked up in; None changes nothing."""
    quiet_mlflow()
    if not uri:
        return  # MLflow takes seconds to import, and may not be needed
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)


def open_store(uri: str) -> Any:
    """An MLflow client of the store, which becomes the one in use; an SQLite file is created if there is none.

    One process at a time creates the tables: two that find them missing break each other.
    """
    use_tracking(uri)
    import mlflow
    from filelock import FileLock

    if not uri.startswith(SQLITE):
        return mlflow.MlflowClient(uri, uri)
    file = Path(uri.removeprefix(SQLITE))
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


def attempt(write: Callable[[], Any]) -> str | None:
    """Writes to MLflow; None if that worked, else the first line of the error."""
    from mlflow.exceptions import MlflowException

    try:
        write()
    except (MlflowException, OSError) as error:  # artifacts go by another way than metrics, with errors of its own
        return first_line(error)
    return None
