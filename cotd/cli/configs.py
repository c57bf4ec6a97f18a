"""`cotd configs` and `cotd copy`: the studies that ship with cotd."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path
from typing import Annotated

import typer

from cotd.cli.app import app
from cotd.errors import CotdError, nearest


def shipped_configs() -> dict[str, Path]:
    """Name → file of each study that ships: beside the packages in a checkout, inside `cotd` in a wheel."""
    package = Path(__file__).parents[1]
    folder = next((f for f in (package / "tune_configs", package.parent / "tune_configs") if f.is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def shipped_config(name: str) -> Path:
    """The file of a shipped study.

    Raises:
        CotdError: there is no such study.
    """
    shipped = shipped_configs()
    stem = name.removesuffix(".yaml")
    if stem not in shipped:
        raise CotdError(f"no shipped study '{name}'.{nearest(stem, shipped)} Available: {', '.join(shipped)}.")
    return shipped[stem]


@app.command("configs")
def configs() -> None:
    """Lists the studies that ship with cotd.

    Example: cotd configs
    """
    for name, path in shipped_configs().items():
        lines = path.read_text(encoding="utf-8").splitlines()
        prose = itertools.takewhile(lambda line: re.match(r"# \S", line), lines)  # commands are indented
        about = " ".join(line.removeprefix("# ") for line in prose)
        print(f"{name:20} {re.split(r'(?<=[.?]) (?=[A-Z])', about)[0].rstrip('.:')}")


@app.command("copy")
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a study's name, as in `cotd configs`")],
    directory: Annotated[Path, typer.Argument(metavar="FOLDER", help="where to put it")] = Path(),
) -> None:
    """Copies a shipped study, and its table if it has one, to be changed and run.

    Example: cotd copy tickets .
    """
    source = shipped_config(name)
    target, table = directory / source.name, source.with_suffix(".csv")
    copies = {target: source} | ({directory / table.name: table} if table.is_file() else {})
    if existing := [str(copy) for copy in copies if copy.exists()]:
        raise CotdError(*(f"{copy} exists already: remove it, or name another folder." for copy in existing))
    directory.mkdir(parents=True, exist_ok=True)
    for copy, original in copies.items():
        shutil.copyfile(original, copy)
    study = source.read_text(encoding="utf-8").replace(f"tune_configs/{source.stem}.", f"{directory / source.stem}.")
    target.write_text(study, encoding="utf-8")
    print(f"copied to {target}. What to run: cotd status {target}")
