"""The MLflow store that runs and models are in: which one, opening it, and its errors."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cotd.errors import CotdError
from cotd.utils.text import describe_error
from cotd.utils.urls import credentials_problem

SQLITE = "sqlite:///"
ARTIFACTS = "mlflow-artifacts"  # the folder of studies' artifacts, beside the database
# Where MLflow's database says where files are.
PLACES = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "source"), ("model_versions", "storage_location"),
)  # fmt: skip


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
    """Makes `uri` the tracking store and registry that `models:/…` is looked up in; None changes nothing.

    Raises:
        CotdError: it holds credentials.
    """
    quiet_mlflow()
    if not uri:
        return  # MLflow takes seconds to import, and may not be needed
    if problem := credentials_problem(uri):
        raise CotdError(f"the tracking URI: {problem}.")
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
        follow_move(file)
        client = mlflow.MlflowClient(uri, uri)
        client.search_experiments(max_results=1)  # opens it: a client by itself is lazy
        return client


def use_project_store() -> None:
    """Looks models up where the commands do, unless a store was chosen: MLflow by itself would take `./mlflow.db`.

    Raises:
        CotdError: the store is an SQLite database that does not exist.
    """
    import mlflow

    if not mlflow.is_tracking_uri_set():
        use_tracking(default_tracking_uri())
    uri = mlflow.get_tracking_uri()
    require_database(uri)
    if uri.startswith(SQLITE):
        follow_move(Path(uri.removeprefix(SQLITE)))


def require_database(uri: str) -> None:
    """Raises a CotdError if a store is an SQLite database that does not exist, which reading would create."""
    if uri.startswith(SQLITE) and not (database := Path(uri.removeprefix(SQLITE))).is_file():
        raise CotdError(f"no MLflow database '{database}'. Run `cotd promote CONFIG` first, or name the store: --tracking-uri.")


def follow_move(database: Path) -> None:
    """Corrects where an SQLite store's artifacts are, after the folder that holds both was moved: MLflow keeps full paths.

    Where the old folder is still there, as after a copy, nothing is changed.
    """
    here = database.absolute().parent / ARTIFACTS
    if not database.is_file() or not here.is_dir():
        return
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=30)) as store, store:
        places = store.execute("SELECT artifact_location FROM experiments WHERE artifact_location LIKE 'file://%'").fetchall()
        roots = {place[: place.index(f"/{ARTIFACTS}/")] for (place,) in places if f"/{ARTIFACTS}/" in place}
        for old in roots - {here.parent.as_uri()}:
            if Path(unquote(urlsplit(old).path), ARTIFACTS).exists():
                continue
            for table, column in PLACES:
                with contextlib.suppress(sqlite3.Error):  # a version of MLflow without it
                    store.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # nosec B608
                        (here.parent.as_uri(), len(old) + 1, len(old) + 1, f"{old}/"),
                    )


def without_password(uri: str) -> str:
    """A store's URI for messages."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:…@", uri)


@contextlib.contextmanager
def friendly_errors(uri: str) -> Iterator[None]:
    """Turns MLflow's failure to reach its store into one readable message."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, OSError, ImportError, SQLAlchemyError) as error:
        advice = "Start the server, or set tracking.uri (sqlite:///… needs no server)."
        if isinstance(error, ImportError):
            advice = f"Install the database's driver ({error.name}), or set tracking.uri (sqlite:///… needs none)."
        raise CotdError(
            f"cannot use the MLflow tracking store '{without_password(uri)}': {describe_error(error)}. {advice}"
        ) from error


def attempt(write: Callable[[], Any]) -> str | None:
    """Writes to MLflow; None if that worked, else the first line of the error.

    Whatever it is: artifacts go by another way than metrics, and a bucket's or database's errors have no common base.
    """
    try:
        write()
    except Exception as error:  # noqa: BLE001
        return describe_error(error)
    return None
