"""What travels to the workers of a joined Ray cluster: this code and environment variables; and what must not stay there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cotd.errors import CotdError
from cotd.study.config import StudyConfig

PACKAGES = ("cotd", "pipelines", "serve")
ROOT = Path(__file__).parents[2]
# Ray's names for the configuration of a submitted job, in the environment of its entrypoint, and for the folder of such
# jobs' working folders.
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
JOB_FOLDER = "working_dir_files"


def runtime_env(address: str, variables: dict[str, str]) -> dict[str, Any] | None:
    """Ray's runtime environment for a driver; None for a local Ray, whose workers share this machine's.

    A cluster's workers get the packages that this process would import, whatever the nodes have. A job submitted with a
    working folder has them already, and Ray refuses to take them twice.

    Args:
        address: of the Ray to join, or "local".
        variables: environment variables for the workers.

    Raises:
        CotdError: a driver cannot join this address.
    """
    if address == "local":
        return None
    if address.startswith("ray://"):
        raise CotdError(
            f"RAY_ADDRESS {address} is Ray Client's, which a study cannot use: its driver writes MLflow and follows the "
            "trials' folders. Run it on the cluster: `ray job submit --working-dir . -- cotd …`, or there with RAY_ADDRESS=auto."
        )
    if address.startswith(("http://", "https://")):
        raise CotdError(
            f"RAY_ADDRESS {address} is a dashboard's, which takes jobs: `ray job submit --working-dir . -- cotd …`. "
            "To join the cluster from one of its machines, set RAY_ADDRESS=auto."
        )
    job = json.loads(os.environ.get(JOB) or "{}").get("runtime_env") or {}
    already_set = job.get("env_vars") or {}
    env: dict[str, Any] = {"env_vars": {k: v for k, v in variables.items() if k not in already_set}}
    if not {"working_dir", "py_modules"} & set(job):
        env["py_modules"] = [str(ROOT / package) for package in PACKAGES]
    return env


def require_lasting(config: StudyConfig) -> None:
    """Refuses results in the working folder of a submitted job, which Ray deletes after it.

    Raises:
        CotdError: the study's storage or its MLflow database is there.
    """
    advice = ""
    if not config.remote and JOB_FOLDER in config.local_storage.parts:
        what = f"storage '{config.storage}'"
        advice = "Name a folder that every node shares, as in storage=/shared/runs, or a URL."
    elif JOB_FOLDER in Path(config.tracking_uri()).parts:
        what = "the MLflow database"
        advice = "Name a server, as in tracking.uri=http://mlflow:5000, or set MLFLOW_TRACKING_URI."
    if advice:
        raise CotdError(f"{what} is in the submitted job's own folder, which Ray deletes after it. {advice}")
