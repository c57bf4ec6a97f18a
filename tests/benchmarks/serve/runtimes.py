"""Speed, memory and agreement of each runtime with the same students: `python -m tests.benchmarks.serve.runtimes`; nine minutes.

Each runtime in a process of its own with all cores; the baseline is the student as transformers runs it. A runtime whose
packages are missing is left out, and named. Throughput is in batches of 32, without HTTP.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from cotd.utils.hardware import multiplies_bfloat16
from serve.runtimes.registry import RUNTIMES
from tests.benchmarks.figures import figure, is_small, run_module, write
from tests.benchmarks.students import CORES, MEANING, review_texts, student_folders

MEASURES = {
    "median_ms": "ms", "p99_ms": "ms", "texts_per_second": "1/s", "load_seconds": "s", "rss_mb": "MiB", "labels_equal": "",
}  # fmt: skip
BASELINE = "transformers"


def available() -> tuple[list[str], list[str]]:
    """The runtimes whose packages are there, the baseline first; and those that are left out, each with what it lacks."""
    names, left_out = [], []
    for name in sorted(RUNTIMES, key=lambda n: n != BASELINE):
        if missing := [p for p in RUNTIMES[name].packages if importlib.util.find_spec(p) is None]:
            left_out.append(f"{name} (needs {', '.join(missing)})")
        else:
            names.append(name)
    return names, left_out


def measure(folder: Path, runtime: str, texts: list[str], small: bool) -> dict[str, Any]:
    what = {"folder": str(folder), "runtime": runtime, "texts": texts, "threads": 1 if small else CORES}
    what |= {"seconds": 1 if small else 12, "latency_texts": 10 if small else 300}
    return json.loads(run_module("serve.one_runtime", json.dumps(what)))


def notes(size: str, name: str, found: dict[str, Any]) -> dict[str, str]:
    """Notes on the measures of a runtime."""
    emulated = "bfloat16 is emulated on this processor" if name == "torch-bf16" and not multiplies_bfloat16(False) else ""
    return {
        "median_ms": emulated,
        "p99_ms": f"{found['latency_texts']} texts",
        "load_seconds": f"the endpoint refuses it: {found['refused']}" if found["refused"] else "",
        "labels_equal": f"{found['compared']} texts, probabilities at most {found['apart']:.4f} apart; {MEANING[size]}",
    }


def table(size: str, seen: dict[str, dict[str, Any]]) -> str:
    """A row a runtime, in Markdown."""
    head = "| runtime | median, ms | 99th percentile, ms | texts a second | load, s | memory, MiB | labels as the student's |"
    rows = [
        f"| {name} | {f['median_ms']:.1f} | {f['p99_ms']:.1f} | {f['texts_per_second']:.0f} | {f['load_seconds']:.1f} "
        f"| {f['rss_mb']:.0f} | {f['labels_equal']:.1%} of {f['compared']}{' (refused)' if f['refused'] else ''} |"
        for name, f in seen.items()
    ]
    return "\n".join([f"{size}: {MEANING[size]}", head, "|---|" + "---|" * 6, *rows])


def main() -> None:
    small = is_small(__doc__)
    texts = review_texts(64 if small else 500)
    names, left_out = available()
    figures, tables = [], []
    with student_folders() as folders:
        for size, folder in folders.items():
            seen = {name: measure(folder, name, texts, small) for name in names}
            tables.append(table(size, seen))
            for measured, unit in MEASURES.items():
                for name, found in seen.items():
                    compared = name != BASELINE and measured not in ("load_seconds", "labels_equal")
                    base = (BASELINE, seen[BASELINE][measured]) if compared else None
                    repeats = found["latency_texts"] if measured in ("median_ms", "p99_ms") else 1
                    note = notes(size, name, found).get(measured, "")
                    figures.append(figure(f"{measured}_{size}_{name}", found[measured], unit, base, repeats, note))
    if left_out:
        figures.append(figure("left_out", len(left_out), "runtimes", note="; ".join(left_out)))
    write("serve_runtimes", figures, small)
    print("\n\n".join(["", *tables]))


if __name__ == "__main__":
    main()
