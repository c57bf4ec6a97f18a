"""Training a causal student against a plain Hugging Face training: `python -m tests.benchmarks.train.causal_speed`.

The baseline is transformers' Trainer as it comes, over padded batches of the same sequences: a prompt and its label, and a prompt
and its rationale. Model (SmolLM2-135M), precision, examples, their order and how many make a step are the same. Both train by
turns in one process; the first step of each run does not count. A quarter of an hour on a quiet machine.

Both have one thread, as a trial of a sweep has, and are timed by the processor, which other work on the machine changes little.

Texts are some sentences of Rotten Tomatoes one after another, as long as reviews of restaurants are; with --data FILE those of a
Parquet file with the columns text, label and rationale.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from cotd import assets
from cotd.data.config import DataConfig
from cotd.data.sources import load_examples
from cotd.students.backends.base import TARGET_KINDS
from cotd.students.student import Student
from cotd.training.config import TrainingConfig
from cotd.training.encoding import EncodedPairs
from cotd.training.folder import TrialFolder
from cotd.training.pairs import PAIR_COLUMNS
from cotd.training.train import denormals_flushed, untrained_student
from cotd.training.trainer import StudentTrainer
from cotd.training.trial import Trial
from cotd.utils.hardware import choose_dtype
from tests.benchmarks.figures import figure, parse, scratch_folder, spread, write
from tests.benchmarks.train.speed import seconds_a_step
from tests.cotd.training.helpers import encode_pairs
from tests.tasks import SENTIMENT

BASE = "embedded:smollm2-135m-instruct"
METHODS = {"labels": "finetune", "rationales": "cot_labelled"}
LONGEST = {"max_input_tokens": 256, "max_target_tokens": 128}
BATCH = 8
STEPS = 4
REPEATS = 3
MEDIAN_SENTENCES, SPREAD = 4, 0.9  # of a log-normal distribution: half of the texts have 50 to 200 tokens
PLAIN = "transformers' Trainer"


def made_up(count: int) -> pd.DataFrame:
    """Texts of some sentences of one label, and rationales of two to four others."""
    assets.pull(["rotten-tomatoes"], report=lambda _: None)
    table = load_examples(DataConfig(source="embedded:rotten-tomatoes"), SENTIMENT).split("train")
    sentences = {label: list(rows["text"]) for label, rows in table.groupby("label")}
    drawn = random.Random(0)
    rows = []
    for _ in range(count):
        label = drawn.choice(sorted(sentences))
        length = max(1, round(drawn.lognormvariate(math.log(MEDIAN_SENTENCES), SPREAD)))
        text, rationale = (" ".join(drawn.choices(sentences[label], k=k)) for k in (length, drawn.randint(2, 4)))
        rows.append((text, label, rationale))
    return pd.DataFrame(rows, columns=["text", "label", "rationale"])


def examples(data: str | None, count: int) -> pd.DataFrame:
    if data is None:
        return made_up(count)
    rows = pd.read_parquet(data, columns=["text", "label", "rationale"]).dropna()
    return rows.sample(min(count, len(rows)), random_state=0)


def trial(method: str, steps: int, batch: int) -> Trial:
    settings = {"steps": steps, "batch_size": batch, "eval_every": steps, **LONGEST}
    training = TrainingConfig(**settings).for_kind("causal")
    return Trial(method, 1.0, "smol", 0, BASE, training, SENTIMENT.to_dict(), "b", "r", "a")


def encoded(rows: pd.DataFrame, student: Student, with_rationales: bool) -> EncodedPairs:
    pairs = []
    for number, row in enumerate(rows.itertuples()):
        pairs.append((str(number), row.text, SENTIMENT.verbalize(row.label), "label", 1.0))
        if with_rationales:
            pairs.append((str(number), row.text, row.rationale, "rationale", 1.0))
    return encode_pairs(pd.DataFrame(pairs, columns=PAIR_COLUMNS), student.backend, *LONGEST.values())


class Sequences(list[dict[str, list[int]]]):
    """Prompt and target of each pair as one sequence, of which the target is learned."""

    def __init__(self, rows: EncodedPairs):
        for row in rows:
            for source, target, _ in (pair for kind in TARGET_KINDS for pair in row[kind]):
                self.append({"input_ids": [*source, *target], "labels": [-100] * len(source) + [*target]})


def pad(rows: Sequence[dict[str, list[int]]], padding: int) -> dict[str, Any]:
    columns = {name: [torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels")}
    return {
        "input_ids": pad_sequence(columns["input_ids"], batch_first=True, padding_value=padding),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in columns["input_ids"]], batch_first=True),
        "labels": pad_sequence(columns["labels"], batch_first=True, padding_value=-100),
    }


def plain_trainer(student: Student, rows: EncodedPairs, settings: TrainingConfig, folder: Path) -> Any:
    """transformers' Trainer with its own defaults, but for what is not about speed."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    sequences = Sequences(rows)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=settings.steps, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay,
        per_device_train_batch_size=settings.batch_size * len(sequences) // len(rows), use_cpu=not torch.cuda.is_available(),
        bf16=choose_dtype(settings.precision, torch.cuda.is_available()) == "bfloat16", remove_unused_columns=False,
        report_to="none", disable_tqdm=True, save_strategy="no", log_level="error", logging_strategy="no",
    )  # fmt: skip
    padding = student.tokenizer.pad_token_id
    trainer = Trainer(student.model, arguments, lambda batch: pad(batch, padding), sequences)  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(ours: bool, made: Trial, rows: pd.DataFrame) -> float:
    """Examples a second of processor time, the first step apart."""
    student = untrained_student(made, SENTIMENT)
    pairs = encoded(rows, student, made.method == METHODS["rationales"])
    with scratch_folder() as scratch:
        if ours:
            validation = pd.DataFrame({"id": ["v"], "text": ["fine"], "label": ["positive"]})
            trainer: Any = StudentTrainer(student, pairs, validation, made, TrialFolder(scratch))
            trainer.args.save_strategy = "no"
        else:
            trainer = plain_trainer(student, pairs, made.training, scratch)
        trainer._get_train_sampler = lambda *_: None  # as they come
        with denormals_flushed() if ours else nullcontext():
            seconds = seconds_a_step(trainer, time.process_time)
    return made.training.batch_size * len(seconds) / sum(seconds)


def main() -> None:
    options = parse(__doc__, {"data": None})
    steps, batch, repeats = (2, 2, 1) if options.small else (STEPS, BATCH, REPEATS)
    torch.set_num_threads(1)
    rows = examples(options.data, steps * batch)
    figures = []
    for name, method in METHODS.items():
        found: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(repeats):
            for ours, speeds in found.items():
                speeds.append(run(ours, trial(method, steps, batch), rows))
        base = (PLAIN, statistics.median(found[False]))
        note = f"{method}, {batch} examples a step; {spread(found[True])}, the baseline {spread(found[False])}"
        figures.append(figure(name, statistics.median(found[True]), "examples/s", base, repeats, note))
    write("train_causal_speed", figures, options.small)


if __name__ == "__main__":
    main()
