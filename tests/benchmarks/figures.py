"""What every benchmark shares: its arguments, its figures, and the file they are written to."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that what was started is ended too
    parser.add_argument("--small", action="store_true", help="a smoke test: small, and figures that mean little")
    return parser.parse_args()


def figure(
    name: str, value: float, unit: str, baseline: tuple[str, float] | None = None, repeats: int = 1, note: str = ""
) -> dict[str, Any]:
    """One figure of a benchmark's file. `ratio` is value / baseline."""
    what, base = baseline or (None, None)
    ratio = round(value / base, 3) if base else None
    base = round(base, 3) if base is not None else None
    made = {"name": name, "value": round(value, 3), "unit": unit, "baseline": what, "baseline_value": base}
    return {**made, "ratio": ratio, "repeats": repeats, "note": note}


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
    scratch = target.with_suffix(".part")
    scratch.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    scratch.rename(target)
