"""Two training steps at one batch size in a process of its own, so that its memory is its own; prints JSON."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.training.folder import TrialFolder
from cotd.training.trainer import make_trainer
from tests.benchmarks.training import annotated, encoded, papers_trainer, student, trial


def measure(which: str, ours: bool, batch: int, at_once: int | None, small: bool) -> dict[str, Any]:
    """`start_mb`, of the process with the student loaded, and `peak_mb`, in MiB."""
    made = student(which)
    reviews, annotations = annotated(small)
    rows = encoded(reviews.split("train"), annotations, made.tokenizer)
    settings = trial(batch, 2, micro_batch_size=at_once)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    longest = sorted((rows[i] for i in range(len(rows))), key=lambda row: -len(row["rationale"][0][1]))
    batches = (longest * (2 * batch // len(longest) + 1))[: 2 * batch]
    with tempfile.TemporaryDirectory(prefix="cotd-bench-") as scratch:
        if ours:
            validation = pd.DataFrame({"id": ["v"], "text": ["fine"], "label": ["positive"]})
            trainer = make_trainer(made, rows, validation, settings, TrialFolder(Path(scratch)), None)
        else:
            trainer = papers_trainer(made.model, made.tokenizer, rows, settings.training, Path(scratch), 0)
        trainer.train_dataset = batches
        trainer._get_train_sampler = lambda *_: None
        trainer.train()
    return {"start_mb": start, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
