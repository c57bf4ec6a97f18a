"""The program `cotd`: what all commands have in common."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cotd import __version__
from cotd.errors import CotdError, full_disk
from cotd.progress import VERBOSE, is_verbose
from cotd.utils.memory import collect_seldom
from cotd.utils.text import first_line

VERBOSE_OPTION = "--verbose"
STUDY = "study"  # of a context: the file of a study that the command was given, and the overrides


def name_study(context: typer.Context, text: str) -> str:
    """A text in which commands to run next name the study's file, where this command was given it, in place of CONFIG."""
    return text.replace(" CONFIG", f" {shlex.join(context.meta[STUDY])}") if STUDY in context.meta else text


class Program(TyperGroup):
    """The group of all commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Takes `--verbose` after the command's name, too."""
        end = args.index("--") if "--" in args else len(args)
        if VERBOSE_OPTION in args[:end]:
            args = [VERBOSE_OPTION, *(a for i, a in enumerate(args) if a != VERBOSE_OPTION or i > end)]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CotdError as error:
            error.args = tuple(name_study(ctx, problem) for problem in error.problems)
            raise


app = typer.Typer(
    name="cotd",
    cls=Program,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Chain-of-thought distillation: a teacher annotates examples, small students learn, the best is served.\n\n"
    "Start with: cotd demo. For a file of your own: cotd init FILE",
)


class Stopped(SystemExit):
    """The end of a command that was interrupted and has said so."""


@contextlib.contextmanager
def stopped_with(result: str) -> Iterator[None]:
    """Says what a command leaves when Ctrl-C or SIGTERM ends it, in place of the words for commands that continue."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or files that are not whole would stay
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as ended:
        code = ended.code if isinstance(ended, SystemExit) else 130
        if code not in (130, 143):
            raise
        print(f"\nstopped; {result}.", file=sys.stderr)
        raise Stopped(code) from None


def main() -> None:
    """Entry point: bad input ends in a readable message and exit code 2, a fault of the program's in exit code 1."""
    collect_seldom()
    try:
        app()
    except CotdError as error:
        if is_verbose():
            traceback.print_exc()
        problems = error.problems
        heading = "error:" if len(problems) == 1 else f"{len(problems)} errors:"
        print(f"{heading} {error}" if len(problems) == 1 else f"{heading}\n{error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == 130 and not isinstance(ended, Stopped):  # Ctrl-C
            print("\nstopped; what was done is kept, and the same command continues from there.", file=sys.stderr)
        raise
    except Exception as error:
        if is_verbose():
            raise
        if full_disk(error, Path()):
            where = f" to write {filename}" if (filename := getattr(error, "filename", None)) else ""
            print(f"error: no space is left on the disk{where}. Free some, and run the same command again.", file=sys.stderr)
            sys.exit(2)
        with tempfile.NamedTemporaryFile("w", prefix="cotd-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        print(f"unexpected error: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
        print(f"Its traceback is in {file.name}; `cotd --verbose …` prints it, and what Ray and vLLM log.", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    verbose: Annotated[
        bool, typer.Option(VERBOSE_OPTION, help="show Ray's and vLLM's own logs, and the traceback of an error")
    ] = False,
) -> None:
    if verbose:
        os.environ[VERBOSE] = "1"
    if version:
        print(f"cotd {__version__}")
        raise typer.Exit
