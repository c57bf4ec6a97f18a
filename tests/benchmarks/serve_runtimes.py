"""What each runtime makes of the same students: `python -m tests.benchmarks.serve_runtimes`; eight minutes.

Each runtime in a process of its own with all cores; the baseline is the student as transformers runs it. A runtime whose
packages are missing is left out, and named. Throughput is in batches of 32, without HTTP.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from serve.runtime import PACKAGES, RUNTIMES
from tests.benchmarks.figures import arguments, figure, write  # fmt: skip
from tests.benchmarks.serving import CORES, review_texts, student_folders

MEASURES = {"median_ms": "ms", "texts_per_second": "1/s", "load_seconds": "s", "rss_mb": "MiB", "labels_equal": ""}
BASELINE = "transformers"


def available() -> list[str]:
    """The runtimes whose packages are there, the baseline first."""
    names = []
    for name in sorted(RUNTIMES, key=lambda n: n != BASELINE):
        if missing := [p for p in PACKAGES.get(name, ()) if importlib.util.find_spec(p) is None]:
            print(f"{name}: left out; pip install {' '.join(missing)}")
        else:
            names.append(name)
    return names


def measure(folder: Path, runtime: str, texts: list[str], small: bool) -> dict[str, Any]:
    what = {"folder": str(folder), "runtime": runtime, "texts": texts, "threads": 1 if small else CORES}
    what |= {"seconds": 1 if small else 15, "latency_texts": 10 if small else 300}
    command = [sys.executable, "-m", "tests.benchmarks.one_runtime", json.dumps(what)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    small = arguments(__doc__ or "").small
    texts = review_texts(64 if small else 500)
    figures = []
    with student_folders() as folders:
        for size, folder in folders.items():
            seen = {name: measure(folder, name, texts, small) for name in available()}
            for measured, unit in MEASURES.items():
                for name, found in seen.items():
                    compared = name != BASELINE and measured not in ("load_seconds", "labels_equal")
                    base = (BASELINE, seen[BASELINE][measured]) if compared else None
                    note = {
                        "median_ms": f"99th percentile {found['p99_ms']:.1f} ms",
                        "labels_equal": f"probabilities at most {found['apart']:.4f} apart",
                        "load_seconds": f"refused: {found['refused']}" if found["refused"] else "",
                    }.get(measured, "")
                    figures.append(figure(f"{measured}_{size}_{name}", found[measured], unit, base, 1, note))
    write("serve_runtimes", figures, small)


if __name__ == "__main__":
    main()
