"""Training examples a second against the papers' way of training: `python -m tests.benchmarks.train.speed`; a quarter of an hour.

The baseline is Seq2SeqTrainer with two forward passes over padded batches in float32 (`tests.benchmarks.train.papers`). Ours
train in float32 too and, where that is what `precision: auto` chooses, in bfloat16. All train the same students on the
same examples with the teacher's rationales, by turns, in one process; the first step of each run does not count. All are
then asked, in float32, for the same loss on held-out examples.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pandas as pd
import torch

from cotd.students.backends.t5.dropout import set_dropout
from cotd.students.student import Student
from cotd.training.collate import collate, multi_task_loss
from cotd.training.encoding import EncodedPairs
from cotd.training.folder import TrialFolder
from cotd.training.trainer import StudentTrainer
from cotd.utils.hardware import choose_dtype
from tests.benchmarks.figures import figure, is_small, scratch_folder, spread, write
from tests.benchmarks.train.papers import annotated, encoded, papers_trainer, student, trial

REPEATS = 3
BATCHES = {"60m": (8, 32), "embedded": (8, 32)}
EXAMPLES_A_RUN = {"60m": 160, "embedded": 640}
# What the others are compared with.
PAPERS = "papers"


class Way(NamedTuple):
    """How cotd trains: whether with one encoder pass for both tasks, and in which number format."""

    shared_encoder: bool
    precision: str


def ways() -> dict[str, Way]:
    variants = {"ours": Way(False, "float32"), "ours_shared_encoder": Way(True, "float32")}
    if choose_dtype("auto", torch.cuda.is_available()) == "bfloat16":
        variants |= {"ours_bfloat16": Way(False, "bfloat16"), "ours_shared_encoder_bfloat16": Way(True, "bfloat16")}
    return variants


def seconds_a_step(trainer: Any, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Trains; returns the seconds of each step but the first."""
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(clock())

    trainer.add_callback(Clock())
    trainer.train()
    return [after - before for before, after in pairwise(ends)]


@torch.inference_mode()
def held_out_loss(made: Student, rows: list[dict[str, Any]]) -> float:
    """Label loss plus rationale loss without dropout."""
    made.model.eval()
    batch = collate(rows, made.backend, 32)
    return sum(multi_task_loss(made.backend, part, batch["totals"]).item() for part in batch["parts"])


def run(
    which: str, way: Way | None, batch: int, rows: EncodedPairs, held_out: list[dict[str, Any]], steps: int, seed: int
) -> tuple[float, float]:
    """(examples a second, held-out loss) of one run; of the papers' way without a `way`."""
    torch.manual_seed(seed)
    made = student(which, shared_encoder=way is not None and way.shared_encoder)
    settings = trial(batch, steps, seed, precision=way.precision if way else "float32")
    with scratch_folder() as scratch:
        if way is None:
            trainer = papers_trainer(made.model, made.tokenizer, rows, settings.training, scratch, seed)
        else:
            set_dropout(made.model, settings.training.dropout)
            validation = pd.DataFrame({"id": ["v"], "text": ["fine"], "label": ["positive"]})
            trainer = StudentTrainer(made, rows, validation, settings, TrialFolder(scratch))
        seconds = seconds_a_step(trainer)
    return batch * len(seconds) / sum(seconds), held_out_loss(made, held_out)


def main() -> None:
    small = is_small(__doc__)
    examples, annotations = annotated(small)
    train = examples.split("train")
    pairs = {shared: encoded(train, annotations, student("embedded", shared).backend) for shared in (False, True)}
    cut, ours = len(pairs[False]) * 5 // 6, ways()
    figures = []
    for which, batches in BATCHES.items():
        for batch in batches:
            steps = 3 if small else max(5, EXAMPLES_A_RUN[which] // batch)
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in (PAPERS, *ours)}
            for repeat in range(1 if small else REPEATS):
                for name in found:
                    way = ours.get(name)
                    rows = pairs[way is not None and way.shared_encoder]
                    held_out = [rows[i] for i in range(cut, len(rows))]
                    found[name].append(run(which, way, batch, rows.head(cut), held_out, steps, repeat))
            base = ("two passes, padded", statistics.median(speed for speed, _ in found[PAPERS]))
            theirs = [loss for _, loss in found[PAPERS]]
            for name in ours:
                losses = [loss for _, loss in found[name]]
                note = f"after {steps * batch:,} examples held-out losses of {spread(losses)}, theirs of {spread(theirs)}"
                speed = statistics.median(speed for speed, _ in found[name])
                figures.append(figure(f"{which}_batch_{batch}_{name}", speed, "examples/s", base, len(losses), note))
    write("train_speed", figures, small)


if __name__ == "__main__":
    main()
