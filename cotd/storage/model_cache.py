"""Local folders of registered models: `models:/…` URIs are resolved here, and versions from a server are kept."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from cotd.errors import CotdError
from cotd.storage.tracking_store import quiet_mlflow, use_project_store, without_password
from cotd.utils.files import replacing
from cotd.utils.home import home
from cotd.utils.text import first_line

KEPT = 5  # versions of a model
NO_FILES = "No such artifact"  # what MLflow says of a version whose folder is gone


def download_student(uri: str) -> Path:
    """The local folder of the student that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        CotdError: the model, alias or version does not exist, or the server cannot be reached.
    """
    quiet_mlflow()
    import mlflow
    from mlflow.exceptions import MlflowException

    use_project_store()
    store = without_password(mlflow.get_tracking_uri())
    try:
        folder = fetch_version(uri)
    except (MlflowException, OSError) as error:
        if isinstance(error, MlflowException) and not str(error).startswith(NO_FILES):
            raise CotdError(f"no student '{uri}' in {store}: {first_line(error)}. Run `cotd promote CONFIG` first.") from error
        raise CotdError(
            f"the files of '{uri}' in {store} are no longer where they were: {first_line(error)}. The folder was moved or deleted: "
            "move it back, or run `cotd sweep CONFIG` and `cotd promote CONFIG` again."
        ) from error
    student = folder / "artifacts" / "student"
    return student if student.is_dir() else folder


def fetch_version(uri: str) -> Path:
    """The local folder of the model that a `models:/…` URI names, which must not be changed.

    A store of files is read in place. From a server a version is downloaded once, into `COTD_HOME/models/NAME/`: MLflow by
    itself would leave a copy among the temporary files at every call.

    Raises:
        MlflowException: the model, alias or version does not exist, or the server cannot be reached.
    """
    import mlflow

    store = mlflow.get_registry_uri()
    name, version = model_version(uri)
    if version == "local" or not is_server(store):
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    # Not the version alone: a registry that is created anew counts from one again.
    made = mlflow.MlflowClient().get_model_version(name, version)
    key = hashlib.sha256(f"{store} {made.source} {made.creation_timestamp}".encode()).hexdigest()[:12]
    folder = home() / "models" / name / f"{version}-{key}"
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder) as temporary:
                temporary.mkdir()
                mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{name}/{version}", dst_path=str(temporary))
        except OSError:
            if not folder.is_dir():  # else another replica was faster; this is a COTD_HOME that cannot be written to
                return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    os.utime(folder)
    versions = sorted((f for f in folder.parent.iterdir() if not f.name.startswith(".")), key=lambda f: f.stat().st_mtime)
    for old in versions[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def is_server(store: str) -> bool:
    return store.startswith(("http://", "https://"))


def model_version(uri: str) -> tuple[str, str]:
    """(name, version) that a `models:/…` URI stands for now; for any other source its name and "local".

    Raises:
        CotdError: there is no such alias.
    """
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
