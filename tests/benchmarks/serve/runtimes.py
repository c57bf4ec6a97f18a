"""Speed, memory and agreement of each runtime with the same students: `python -m tests.benchmarks.serve.runtimes`; twelve minutes.

Each runtime in a process of its own with all cores; the baseline is the student as transformers runs it. A runtime that computes
other models than the student's is left out, and one whose packages are missing is, and named. Throughput is in batches of 32,
without HTTP.
"""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import numpy as np
import psutil
import torch

from cotd.errors import CotdError
from cotd.students.student import Student
from cotd.utils.hardware import multiplies_bfloat16
from serve.runtimes.base import label_step_obstacle
from serve.runtimes.parity import check_parity
from serve.runtimes.registry import RUNTIMES, own_tolerance
from tests.benchmarks.figures import call, figure, is_small, write
from tests.benchmarks.students import BATCH, CORES, MEANING, example_texts, milliseconds_each, student_folders, texts_per_second

COMPARISON_SECONDS = 30.0  # for comparing labels

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


def measure(
    folder: str, runtime: str, texts: list[str], threads: int, seconds: float, latency_texts: int
) -> dict[str, Any] | None:
    """Latency, throughput, load time, memory and agreement with `Student.predict`, over the same texts.

    Returns:
        `median_ms` and `p99_ms` of one text, over `latency_texts` of them; `texts_per_second` in batches of 32;
        `load_seconds` of the runtime, the student being loaded, without its check; `rss_mb` of the process, in MiB, once
        warm, with the student as transformers has it; `labels_equal`, a share of `compared` texts; `apart`, the largest
        difference of a probability; and `refused`, why the endpoint would not take it, or None. A runtime that is very
        slow here is asked about fewer texts. None if it computes other models than the student's.
    """
    torch.set_num_threads(threads)
    student = Student.load(folder)
    if RUNTIMES[runtime].label_only and label_step_obstacle(student):
        return None
    started = time.perf_counter()
    made = RUNTIMES[runtime].build(student)
    measured: dict[str, Any] = {"load_seconds": time.perf_counter() - started, "refused": None}
    try:
        check_parity(made, student, max(RUNTIMES[runtime].tolerance, own_tolerance(student)))
    except CotdError as error:
        measured["refused"] = str(error)
    made.label_logits(texts[:1])
    each = milliseconds_each(lambda text: made.label_logits([text]), texts[:latency_texts], seconds)
    measured["median_ms"], measured["p99_ms"], measured["latency_texts"] = each
    measured["texts_per_second"] = texts_per_second(made.label_logits, texts, seconds)
    measured["rss_mb"] = psutil.Process().memory_info().rss / 2**20
    compared = max(1, min(len(texts), int(COMPARISON_SECONDS * measured["texts_per_second"]) // BATCH * BATCH))
    chunks = [texts[start : min(start + BATCH, compared)] for start in range(0, compared, BATCH)]
    ours = [p for chunk in chunks for p in student.predictions(*made.label_logits(chunk))]
    expected = student.predict(texts[:compared])
    measured["compared"] = compared
    measured["labels_equal"] = float(np.mean([a.label == b.label for a, b in zip(ours, expected, strict=True)]))
    measured["apart"] = max(
        abs(a.probabilities[k] - b.probabilities[k]) for a, b in zip(ours, expected, strict=True) for k in a.probabilities
    )
    return measured


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
    texts = example_texts(64 if small else 500)
    names, left_out = available()
    figures, tables = [], []
    with student_folders(MEANING) as folders:
        for size, folder in folders.items():
            how = {"folder": folder, "texts": texts, "threads": 1 if small else CORES, "seconds": 1 if small else 12}
            how["latency_texts"] = 10 if small else 300
            every = {name: call("serve.runtimes", "measure", runtime=name, **how) for name in names}
            seen = {name: found for name, found in every.items() if found}
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
