"""Trains one student: the loop (transformers' Trainer), selection on validation, and scoring on test."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pandas as pd

from cotd.data.examples import fraction_rows
from cotd.errors import CotdError, full_disk
from cotd.evaluation.metrics import align, fit_temperature, predictions_table, score_predictions
from cotd.evaluation.rationales import score_rationales
from cotd.students.backends.t5.dropout import set_dropout
from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.tasks.registry import get_task
from cotd.training.checkpoints import adopt_checkpoint, latest_checkpoint
from cotd.training.checks import disk_is_full, out_of_memory, require_both_labels, require_rationales
from cotd.training.encoding import EncodedPairs, cached_pairs, encode_trial
from cotd.training.folder import TrialFolder
from cotd.training.methods import METHODS
from cotd.training.pairs import missing_input
from cotd.training.trainer import make_trainer
from cotd.training.trial import Trial

# Test reviews whose rationales are written and scored: that takes a decoder step a token, where a label takes one.
RATIONALES_JUDGED = 200
P = ParamSpec("P")
R = TypeVar("R")


def naming_full_disk(train: Callable[Concatenate[Trial, TrialFolder, P], R]) -> Callable[Concatenate[Trial, TrialFolder, P], R]:
    """What every library says of a full disk in words of its own is one CotdError, which names the place."""

    @wraps(train)
    def named(trial: Trial, folder: TrialFolder, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return train(trial, folder, *args, **kwargs)
        except Exception as error:
            if full_disk(error, folder.path):
                raise CotdError(disk_is_full(folder.path)) from error
            raise

    return named


@naming_full_disk
def train_trial(
    trial: Trial,
    folder: TrialFolder,
    reviews: pd.DataFrame | Path,
    annotations: pd.DataFrame | Path | None,
    provenance: dict[str, Any] | None = None,
    on_score: Callable[[dict[str, float]], None] | None = None,
    teacher_test: dict[str, str] | None = None,
    teacher_rationales: dict[str, str] | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Trains, selects on validation, scores on test, and leaves everything in the trial's folder.

    A folder that holds a checkpoint of a killed attempt is continued from it. Of several workers (processes of one
    torch.distributed group) each calls this, with a folder that shows the same checkpoints; the first one writes.

    Args:
        reviews: the Review table, all splits, or the Parquet file it is in; validation and test need gold labels.
        annotations: the Annotation table, or its file, for methods that need it.
        provenance: what to write into the student's card about data and teacher.
        on_score: called with each validation score, a dict with `step`, `validation_accuracy` and `train_loss`; by every
            worker.
        teacher_test: test review id → the teacher's own label, to report agreement; nothing is trained on it.
        teacher_rationales: validation or test review id → the teacher's own rationale, "" where it has none: what a
            student reads whose method has rationales as inputs, and what others' rationales are compared with.
        cache: a folder that trials share: encoded pairs are kept in it, and mapped into memory.

    Returns:
        What `result.json` holds; of workers other than the first, nothing.

    Raises:
        CotdError: the method misses gold labels, annotations or the rationales it reads, or would see one label only; the
            loss is no longer a number, the GPU's memory ran out, or the disk is full: the last good checkpoint is kept.
    """
    import shutil

    import torch

    started = time.perf_counter()
    task, method = get_task(trial.task), METHODS[trial.method]
    splits = {s: labelled(read_split(reviews, s)) for s in ("validation", "test")}
    if method.rationale_as_input:
        require_rationales(trial.method, splits, teacher_rationales)
    read = teacher_rationales if method.rationale_as_input else None

    torch.manual_seed(trial.seed)
    model, tokenizer = load_base(trial.model)
    set_dropout(model, trial.training.dropout)
    if trial.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.disable_input_require_grads()  # a hook that only its older, re-entrant kind needs
    card = {
        "method": trial.method,
        "writes_rationales": method.writes_rationales,
        "rationale_before_label": method.rationale_before_label,
        "rationale_as_input": method.rationale_as_input,
        "shared_encoder": trial.shares_encoder,
        "max_input_tokens": trial.training.max_input_tokens,
        "truncation": trial.truncation,
        "max_target_tokens": trial.training.max_target_tokens,
    }
    student = Student(model, tokenizer, task, card)

    def encode() -> EncodedPairs:
        table = pd.read_parquet(annotations) if isinstance(annotations, Path) else annotations
        return encode_trial(trial, read_split(reviews, "train"), table, tokenizer, task)

    every = cached_pairs(cache, trial, tokenizer, task, encode) if cache else encode()
    rows = replace(
        every.head(fraction_rows(every.train_rows, trial.fraction)), rationale_weight=trial.training.rationale_weight
    )
    if not len(rows):
        raise CotdError(
            missing_input(method, read_split(reviews, "train").head(fraction_rows(every.train_rows, trial.fraction)))
        )
    require_both_labels(trial, task, len(rows), rows.label_words(), splits["validation"])
    trainer = make_trainer(student, rows, splits["validation"], trial, folder, on_score, read)
    trained_from = time.perf_counter()
    checkpoint = latest_checkpoint(folder.checkpoints)
    if checkpoint:
        adopt_checkpoint(Path(checkpoint))
        if trainer.average:
            trainer.average.load(checkpoint)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except torch.OutOfMemoryError as error:
        raise CotdError(out_of_memory(trial, trainer.state.global_step + 1, error)) from error
    train_seconds = time.perf_counter() - trained_from
    trainer.accelerator.wait_for_everyone()  # the others still read checkpoints, which go at the end
    if not trainer.is_world_process_zero():
        return {}
    if trainer.average:  # the Trainer itself has gone back to what was trained, not to its average
        trainer.average.load(trainer.state.best_model_checkpoint)
        trainer.average.put(trainer.average.average)
    model.eval()

    validation, test = splits["validation"], splits["test"]
    logits, _ = student.label_logits(list(validation["text"]), align(validation, read))
    gold = validation["label"].map(task.labels.index).to_numpy()
    student.temperature = fit_temperature(logits.numpy(), gold)
    validation_metrics = score_predictions(predictions_table(student, validation, read), task.positive)
    predictions = predictions_table(student, test, read)
    metrics = score_predictions(predictions, task.positive, teacher_test)
    if student.can_explain:
        judged = test.head(RATIONALES_JUDGED)
        theirs = [(teacher_rationales or {}).get(i, "") for i in judged["id"]]
        predicted = predictions["predicted"].head(RATIONALES_JUDGED).to_list()
        metrics |= score_rationales(student.explain(list(judged["text"])), predicted, task, theirs)
    best_step = int(trainer.state.best_model_checkpoint.rsplit("-", 1)[1]) if trainer.state.best_model_checkpoint else 0
    result = {
        "trial_id": trial.id, "method": trial.method, "fraction": trial.fraction, "size": trial.size, "seed": trial.seed,
        "validation": validation_metrics, "test": metrics, "best_step": best_step, "steps": trainer.state.global_step,
        "train_reviews": len(rows), "train_seconds": train_seconds, "arm": trial.arm,
        "seconds": time.perf_counter() - started, "parameters": sum(p.numel() for p in model.parameters()),
        "temperature": student.temperature, **rows.counts(),
    }  # fmt: skip
    student.card |= {
        "method": trial.method, "fraction": trial.fraction, "size": trial.size, "seed": trial.seed, "base": trial.model,
        "trial_id": trial.id, "temperature": student.temperature, "training": trial.training.model_dump(),
        "metrics": {"validation": validation_metrics, "test": metrics}, **(provenance or {}),
    }  # fmt: skip
    student.save(folder.student)
    predictions.to_parquet(folder.predictions, index=False)
    folder.write_result(result)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    folder.error.unlink(missing_ok=True)
    return result


def read_split(reviews: pd.DataFrame | Path, split: str) -> pd.DataFrame:
    """A split of the Review table, of which no more than that is read from a file."""
    if isinstance(reviews, Path):
        return pd.read_parquet(reviews, filters=[("split", "==", split)])
    return reviews[reviews["split"] == split]


def labelled(reviews: pd.DataFrame) -> pd.DataFrame:
    return reviews[reviews["label"].notna()]
