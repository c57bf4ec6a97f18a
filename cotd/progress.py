"""Progress on the error stream: lines, and a bar for each stage with the time that is left."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console

console = Console(stderr=True, highlight=False)  # without colours where NO_COLOR is set
VERBOSE = "COTD_VERBOSE"  # set by `cotd --verbose`, and inherited by the processes that it starts


def is_verbose() -> bool:
    """Whether libraries are to write their own logs, and errors their tracebacks."""
    return bool(os.environ.get(VERBOSE))


def say(line: str = "") -> None:
    """Prints one line on the error stream, not wrapped; results go to the output stream."""
    console.print(line, soft_wrap=True, markup=False)


@contextlib.contextmanager
def steady_stream() -> Iterator[None]:
    """Keeps `say` on the present error stream, even if another thread replaces `sys.stderr` to silence a library."""
    before, console.file = console._file, sys.stderr
    try:
        yield
    finally:
        console._file = before


@contextlib.contextmanager
def track(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar for `total` pieces of work; yields a function that is called with the number just done.

    If the error stream is not a terminal (a log file), a line at the start, at each tenth and at the end instead.
    """
    if not sys.stderr.isatty():
        yield from plain_track(title, total, unit)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)]
    columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda n: progress.advance(bar, n)


def plain_track(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """`track` by lines."""
    started, done, shown = time.monotonic(), 0, 0

    def advance(n: int) -> None:
        nonlocal done, shown
        done += n
        if done * 10 // max(total, 1) > shown:
            shown = done * 10 // max(total, 1)
            seconds = time.monotonic() - started
            left = seconds * (total - done) / max(done, 1)
            say(f"  {title}: {done:,}/{total:,} {unit}, {seconds:.0f} s, about {left:.0f} s left")

    say(f"  {title}: {total:,} {unit} to do")
    yield advance
