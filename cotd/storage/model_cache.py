"""Registered models on this machine: what a tracking server sends is kept, one copy a version, and the oldest go."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from cotd.errors import CotdError
from cotd.storage.tracking_store import quiet_mlflow
from cotd.utils.text import first_line

KEPT = 5  # versions of a model


def fetch_version(uri: str) -> Path:
    """The local folder of what `models:/NAME@ALIAS` or `models:/NAME/VERSION` names, which is not to be changed.

    A store of files is read where it lies. From a server a version is downloaded once, into `COTD_HOME/models/NAME/`;
    without a folder to keep it in, MLflow would leave a copy among the temporary files at every call.

    Raises:
        MlflowException: no such model, alias or version, or the server cannot be reached.
    """
    import mlflow

    from cotd.utils.home import home

    store = mlflow.get_registry_uri()
    name, version = model_version(uri)
    if version == "local" or not is_server(store):
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    # Not the version alone: a registry that is made anew counts from one again.
    made = mlflow.MlflowClient().get_model_version(name, version)
    key = hashlib.sha256(f"{store} {made.source} {made.creation_timestamp}".encode()).hexdigest()[:12]
    kept = home() / "models" / name / f"{version}-{key}"
    if not kept.is_dir():
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".", dir=kept.parent))
        except OSError:  # a home that cannot be written to, as in some containers
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
        try:
            mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{name}/{version}", dst_path=str(scratch))
            scratch.chmod(0o755)
            with contextlib.suppress(OSError):  # another replica was faster
                scratch.rename(kept)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    os.utime(kept)
    versions = sorted((f for f in kept.parent.iterdir() if not f.name.startswith(".")), key=lambda f: f.stat().st_mtime)
    for old in versions[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return kept


def is_server(store: str) -> bool:
    return store.startswith(("http://", "https://"))


def download_student(uri: str) -> Path:
    """The local folder of the student that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        CotdError: no such model, alias or version.
    """
    quiet_mlflow()
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        folder = fetch_version(uri)
    except MlflowException as error:
        raise CotdError(
            f"no student '{uri}' in {mlflow.get_tracking_uri()}: {first_line(error)}. Run `cotd promote CONFIG` first."
        ) from error
    student = folder / "artifacts" / "student"
    return student if student.is_dir() else folder


def model_version(uri: str) -> tuple[str, str]:
    """(name, version) that a `models:/…` URI stands for now; for any other source its name and "local"."""
    import mlflow
    from mlflow.exceptions import MlflowException

    match = re.fullmatch(r"models:/([^/@]+)(?:@(.+)|/(\d+))", uri)
    if not match:
        return Path(uri).name, "local"
    name, alias, version = match.groups()
    if alias:
        try:
            version = mlflow.MlflowClient().get_model_version_by_alias(name, alias).version
        except MlflowException as error:
            raise CotdError(
                f"no model '{name}' with the alias '{alias}' in {mlflow.get_tracking_uri()}. Run `cotd promote CONFIG` first, "
                "or name the store: --tracking-uri."
            ) from error
    return name, str(version)
