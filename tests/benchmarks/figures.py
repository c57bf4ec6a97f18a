"""What every benchmark shares: its argument, its scratch folder and child process, its figures and their file."""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cotd.utils.files import write_json


def parse(description: str | None, options: Mapping[str, Any]) -> argparse.Namespace:
    """Parses the command line: --small, and a benchmark's own options with their defaults."""
    parser = argparse.ArgumentParser(description=description)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that what was started is ended too
    parser.add_argument("--small", action="store_true", help="a smoke test: small, and figures that mean little")
    for name, default in options.items():
        parser.add_argument(f"--{name}", default=default)
    return parser.parse_args()


def is_small(description: str | None) -> bool:
    """Parses the command line of a benchmark that has no options of its own."""
    return parse(description, {}).small


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cotd-bench-") as folder:
        yield Path(folder)


def command(module: str, function: str, **arguments: Any) -> list[str]:
    """Calls a function of `tests.benchmarks.MODULE` in a process of its own, and prints its result as JSON."""
    load = f"import json, sys; from tests.benchmarks.{module} import {function}"
    call = f"print(json.dumps({function}(**json.loads(sys.argv[1])), default=str))"
    return [sys.executable, "-c", f"{load}; {call}", json.dumps(arguments, default=str)]


def call(module: str, function: str, env: dict[str, str] | None = None, **arguments: Any) -> Any:
    """The result of `command`: what is measured there has a memory and threads of its own."""
    done = subprocess.run(command(module, function, **arguments), check=True, stdout=subprocess.PIPE, text=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def figure(
    name: str, value: float, unit: str, baseline: tuple[str, float] | None = None, repeats: int = 1, note: str = ""
) -> dict[str, Any]:
    """One figure of a benchmark's file. `baseline` is what it is compared with, and its value: `ratio` is value / baseline."""
    against, base = baseline or (None, None)
    return {
        "name": name, "value": round(value, 3), "unit": unit, "baseline": against,
        "baseline_value": round(base, 3) if base is not None else None, "ratio": round(value / base, 3) if base else None,
        "repeats": repeats, "note": note,
    }  # fmt: skip


def peak_megabytes() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_figures(
    name: str, noun: str, few: tuple[int, float], many: tuple[int, float], note: str = ""
) -> list[dict[str, Any]]:
    """Peak memory at two sizes, each (how many of `noun`, MiB), and what one more of them takes."""
    (count, base), (larger, peak) = few, many
    each = (peak - base) * 2**20 / (larger - count)
    growth = f"the difference is {peak - base:,.0f} MB, {each:,.0f} bytes a {noun}{note}"
    return [
        figure(f"{name}_{count}", base, "MB"),
        figure(f"{name}_{larger}", peak, "MB", (f"{count:,} {noun}s", base), note=growth),
    ]


def spread(values: list[float], digits: int = 3) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def write(name: str, figures: list[dict[str, Any]], small: bool) -> None:
    """Prints a line a figure and writes runs/bench/NAME.json; a smoke test only prints."""
    for f in figures:
        against = f" ({f['ratio']} × {f['baseline']}'s {f['baseline_value']})" if f["baseline"] else ""
        print(f"{f['name']:34} {f['value']:>12,} {f['unit']}{against}  {f['note']}")
    if small:
        return
    target = Path("runs") / "bench" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, figures)
