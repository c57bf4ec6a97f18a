"""The largest batch that fits into 4 GiB: `python -m tests.benchmarks.train.memory`; ten minutes.

A student of T5-small's size, trained on the examples with the longest rationales, float32. Batches double until a process
takes more; the baseline is the papers' way of training (`tests.benchmarks.train.papers`).
"""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import pandas as pd
import psutil

from cotd.training.folder import TrialFolder
from cotd.training.trainer import StudentTrainer
from tests.benchmarks.figures import command, figure, is_small, peak_megabytes, scratch_folder, write
from tests.benchmarks.train.papers import annotated, encoded, papers_trainer, student, trial

LIMIT_MB = 4096.0
LARGEST = 512  # of the batches tried
MICRO_BATCH = 16
WAYS: dict[str, dict[str, Any]] = {
    "two passes, padded": {"ours": False, "micro_batch_size": None},
    "ours": {"ours": True, "micro_batch_size": None},
    f"ours, {MICRO_BATCH} at once": {"ours": True, "micro_batch_size": MICRO_BATCH},
}


def measure(which: str, ours: bool, batch: int, micro_batch_size: int | None, small: bool) -> dict[str, Any]:
    """Two training steps: `start_mb`, of this process with the student loaded, and `peak_mb`, in MiB."""
    made = student(which)
    examples, annotations = annotated(small)
    rows = encoded(examples.split("train"), annotations, made.backend)
    settings = trial(batch, 2, micro_batch_size=micro_batch_size)
    start = peak_megabytes()
    longest = sorted((rows[i] for i in range(len(rows))), key=lambda row: -len(row["rationale"][0][1]))
    batches = (longest * (2 * batch // len(longest) + 1))[: 2 * batch]
    with scratch_folder() as scratch:
        if ours:
            validation = pd.DataFrame({"id": ["v"], "text": ["fine"], "label": ["positive"]})
            trainer = StudentTrainer(made, rows, validation, settings, TrialFolder(scratch))
        else:
            trainer = papers_trainer(made.model, made.tokenizer, rows, settings.training, scratch, 0)
        trainer.train_dataset = batches
        trainer._get_train_sampler = lambda *_: None
        trainer.train()
    return {"start_mb": start, "peak_mb": peak_megabytes()}


def peak(which: str, batch: int, small: bool, way: dict[str, Any]) -> dict[str, Any] | None:
    """`measure` in a process of its own; None where that took more than fits."""
    measuring = command("train.memory", "measure", which=which, batch=batch, small=small, **way)
    process = subprocess.Popen(measuring, stdout=subprocess.PIPE, text=True)
    watched = psutil.Process(process.pid)
    try:
        while process.poll() is None:
            if watched.memory_info().rss / 2**20 > LIMIT_MB:
                return None
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        pass
    finally:
        process.kill()
        out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{way} failed with a batch of {batch}")
    found = json.loads(out.splitlines()[-1])
    return found if found["peak_mb"] <= LIMIT_MB else None


def main() -> None:
    small = is_small(__doc__)
    annotated(small)  # before memory is counted
    which, largest = ("embedded", 32) if small else ("60m", LARGEST)
    fits: dict[str, tuple[int, dict[str, Any]]] = {}
    for name, way in WAYS.items():
        batch = 16
        while batch <= largest and (found := peak(which, batch, small, way)):
            fits[name] = (batch, found)
            batch *= 2
    base = next(iter(WAYS))
    figures = []
    for name, (batch, found) in fits.items():
        against = None if name == base else (base, float(fits[base][0]))
        more = " or more" if batch == largest else ""
        note = f"{which}{more}; {found['peak_mb']:,.0f} MiB at most, {found['start_mb']:,.0f} before"
        figures.append(figure(f"batch, {name}", batch, "examples", against, note=note))
    write("train_memory", figures, small)


if __name__ == "__main__":
    main()
