"""Two training steps at one batch size in a process of its own, so that its memory is its own; prints JSON."""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

import pandas as pd

from cotd.training.folder import TrialFolder
from cotd.training.trainer import StudentTrainer
from tests.benchmarks.figures import scratch_folder
from tests.benchmarks.train.papers import annotated, encoded, papers_trainer, student, trial


def measure(which: str, ours: bool, batch: int, micro_batch_size: int | None, small: bool) -> dict[str, Any]:
    """`start_mb`, of the process with the student loaded, and `peak_mb`, in MiB."""
    made = student(which)
    reviews, annotations = annotated(small)
    rows = encoded(reviews.split("train"), annotations, made.tokenizer)
    settings = trial(batch, 2, micro_batch_size=micro_batch_size)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
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
    return {"start_mb": start, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
