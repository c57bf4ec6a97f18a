"""Training examples a second against the papers' way of training: `python -m tests.benchmarks.train_speed`; twenty minutes.

The baseline is Seq2SeqTrainer with two forward passes over padded batches in float32 (`tests.benchmarks.training`). All
train the same students on the same reviews with the teacher's rationales, by turns, in one process; the first step of
each run does not count. All are then asked for the same loss on held-out reviews.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cotd.batches import collate, multi_task_loss
from cotd.dropout import set_dropout
from cotd.encoding import EncodedPairs
from cotd.student import Student
from cotd.training import make_trainer
from cotd.trials import TrialFolder
from tests.benchmarks.figures import arguments, figure, spread, write
from tests.benchmarks.training import annotated, encoded, papers_trainer, student, trial

REPEATS = 3
BATCHES = {"60m": (8, 32), "embedded": (8, 32)}
REVIEWS_A_RUN = {"60m": 160, "embedded": 640}
# Ours are compared with the first.
WAYS = ("papers", "ours", "ours_shared_encoder")


def seconds_a_step(trainer: Any) -> list[float]:
    """Trains, and says how long each step but the first took."""
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    return [after - before for before, after in pairwise(ends)]


@torch.inference_mode()
def held_out_loss(made: Student, rows: list[dict[str, Any]]) -> float:
    """Label loss plus rationale loss without dropout."""
    made.model.eval()
    batch = collate(rows, made.model.config.decoder_start_token_id, 32, made.rationale_prompt)
    return sum(multi_task_loss(made.model, part, batch["totals"]).item() for part in batch["parts"])


def run(
    which: str, way: str, batch: int, rows: EncodedPairs, held_out: list[dict[str, Any]], steps: int, seed: int
) -> tuple[float, float]:
    """(reviews a second, held-out loss) of one run."""
    torch.manual_seed(seed)
    made = student(which, shared_encoder=way == "ours_shared_encoder")
    settings = trial(batch, steps, seed)
    with tempfile.TemporaryDirectory(prefix="cotd-bench-") as scratch:
        if way == "papers":
            trainer = papers_trainer(made.model, made.tokenizer, rows, settings.training, Path(scratch), seed)
        else:
            set_dropout(made.model, settings.training.dropout)
            validation = pd.DataFrame({"id": ["v"], "text": ["fine"], "label": ["positive"]})
            trainer = make_trainer(made, rows, validation, settings, TrialFolder(Path(scratch)), None)
        seconds = seconds_a_step(trainer)
    return batch * len(seconds) / sum(seconds), held_out_loss(made, held_out)


def main() -> None:
    small = arguments(__doc__ or "").small
    reviews, annotations = annotated(small)
    tokenizer, train = student("embedded").tokenizer, reviews.split("train")
    pairs = {way: encoded(train, annotations, tokenizer, way == "ours_shared_encoder") for way in WAYS}
    cut = len(pairs["papers"]) * 5 // 6
    figures = []
    for which, batches in BATCHES.items():
        for batch in batches:
            steps = 3 if small else max(5, REVIEWS_A_RUN[which] // batch)
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for repeat in range(1 if small else REPEATS):
                for way, rows in pairs.items():
                    held_out = [rows[i] for i in range(cut, len(rows))]
                    found[way].append(run(which, way, batch, rows.head(cut), held_out, steps, repeat))
            base = ("two passes, padded", statistics.median(speed for speed, _ in found["papers"]))
            for way in WAYS[1:]:
                ours, theirs = ([loss for _, loss in found[w]] for w in (way, "papers"))
                note = f"after {steps * batch:,} reviews held-out losses of {spread(ours)}, theirs of {spread(theirs)}"
                speed = statistics.median(speed for speed, _ in found[way])
                figures.append(figure(f"{which}_batch_{batch}_{way}", speed, "reviews/s", base, len(ours), note))
    write("train_speed", figures, small)


if __name__ == "__main__":
    main()
