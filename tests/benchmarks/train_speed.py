"""Training examples a second against the papers' way of training: `python -m tests.benchmarks.train_speed`; twenty minutes.

The baseline is Seq2SeqTrainer with two forward passes over padded batches in float32 (`tests.benchmarks.training`). Both
train the same students on the same reviews with the teacher's rationales, by turns, in one process; the first step of
each run does not count. Both are then asked for the same loss on held-out reviews.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cotd.encoding import EncodedPairs
from cotd.training import make_trainer
from cotd.trials import TrialFolder
from tests.benchmarks.figures import arguments, figure, write
from tests.benchmarks.training import annotated, encoded, padded, papers_trainer, student, trial

REPEATS = 3
BATCHES = {"60m": (8, 32), "embedded": (8, 32)}
REVIEWS_A_RUN = {"60m": 256, "embedded": 768}


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
    return [after - before for before, after in zip(ends, ends[1:], strict=False)]


@torch.inference_mode()
def held_out_loss(model: Any, rows: EncodedPairs, pad: int) -> float:
    """Label loss plus rationale loss, as the baseline computes them."""
    model.eval()
    total = 0.0
    for start in range(0, len(rows), 32):
        batch = padded(rows[start : start + 32], pad)
        for task in ("label", "rationale"):
            total += model(**{k: v.to(model.device) for k, v in batch[task].items()}).loss.item() * len(
                rows[start : start + 32]
            )
    return total / len(rows)


def run(which: str, ours: bool, batch: int, rows: EncodedPairs, held_out: EncodedPairs, steps: int, seed: int) -> Any:
    """(reviews a second, held-out loss) of one run."""
    torch.manual_seed(seed)
    made = student(which)
    settings = trial(batch, steps)
    settings = type(settings)(**{**vars(settings), "seed": seed})
    with tempfile.TemporaryDirectory(prefix="cotd-bench-") as scratch:
        if ours:
            validation = pd.DataFrame({"id": ["v"], "text": ["fine"], "label": ["positive"]})
            trainer = make_trainer(made, rows, validation, settings, TrialFolder(Path(scratch)), None)
        else:
            trainer = papers_trainer(made.model, made.tokenizer, rows, settings.training, Path(scratch), seed)
        seconds = seconds_a_step(trainer)
    return batch * len(seconds) / sum(seconds), held_out_loss(made.model, held_out, made.tokenizer.pad_token_id)


def main() -> None:
    small = arguments(__doc__ or "").small
    reviews, annotations = annotated(small)
    tokenizer = student("embedded").tokenizer
    every = encoded(reviews.split("train"), annotations, tokenizer)
    cut = len(every) * 5 // 6
    rows, held_out = every.head(cut), every
    rest = [every[i] for i in range(cut, len(every))]
    del held_out
    figures = []
    for which, batches in BATCHES.items():
        for batch in batches:
            steps = 3 if small else max(4, REVIEWS_A_RUN[which] // batch)
            found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            for repeat in range(1 if small else REPEATS):
                for ours in (False, True):
                    found[ours].append(run(which, ours, batch, rows, rest, steps, repeat))  # type: ignore[arg-type]
            speeds = {ours: statistics.median(s for s, _ in runs) for ours, runs in found.items()}
            losses = {ours: [loss for _, loss in runs] for ours, runs in found.items()}
            note = "held-out loss {:.3f} to {:.3f}, theirs {:.3f} to {:.3f}".format(
                min(losses[True]), max(losses[True]), min(losses[False]), max(losses[False])
            )
            figures.append(
                figure(
                    f"{which}_batch_{batch}", speeds[True], "reviews/s", ("two passes, padded", speeds[False]),
                    len(found[True]), f"after {steps * batch:,} reviews: {note}",
                )
            )  # fmt: skip
    write("train_speed", figures, small)


if __name__ == "__main__":
    main()
