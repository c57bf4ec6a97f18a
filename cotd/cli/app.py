"""The program `cotd`: what all commands have in common."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cotd import __version__
from cotd.errors import CotdError, full_disk

app = typer.Typer(
    name="cotd",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Chain-of-thought distillation: a teacher annotates reviews, small T5 students learn, the best is served.\n\n"
    "Start with: cotd demo",
)


def main() -> None:
    """Entry point: bad input ends in a readable message and exit code 2."""
    try:
        app()
    except CotdError as error:
        problems = error.problems
        heading = "error:" if len(problems) == 1 else f"{len(problems)} errors:"
        print(f"{heading} {error}" if len(problems) == 1 else f"{heading}\n{error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not full_disk(error, Path()):
            raise
        where = f" to write {error.filename}" if error.filename else ""
        print(f"error: no space is left on the disk{where}. Free some, and run the same command again.", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == 130:  # Ctrl-C
            print("\nstopped; what was done is kept, and the same command continues from there.", file=sys.stderr)
        raise


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        print(f"cotd {__version__}")
        raise typer.Exit
