"""Trains one student: data, model, training, evaluation and saving, in this order."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cotd.data.examples import fraction_rows, select_fraction
from cotd.errors import CotdError
from cotd.evaluation.cascade import risk_coverage, validated_answers
from cotd.evaluation.metrics import align, fit_temperature, own_choices, predictions_table, score_predictions, tabulate
from cotd.evaluation.rationales import score_rationales
from cotd.evaluation.seen import seen_in_training
from cotd.students.backends.t5.dropout import set_dropout
from cotd.students.base_models import load_base
from cotd.students.partial import add_lora, merge_lora, train_last_layers
from cotd.students.student import Student
from cotd.tasks.base import Task
from cotd.tasks.registry import parse_task
from cotd.training.checks import explain_full_disk, require_both_labels, require_rationales
from cotd.training.distributed import latest_of_all
from cotd.training.encoding import EncodedPairs, cached_pairs, encode_here, encode_trial
from cotd.training.folder import TrialFolder
from cotd.training.methods import METHODS
from cotd.training.pairs import missing_input
from cotd.training.trainer import StudentTrainer
from cotd.training.trial import Trial
from cotd.utils.hardware import choose_dtype
from cotd.utils.iteration import each_or_none
from cotd.utils.parquet import write_parquet

# Test examples whose rationales are written and scored, which takes a decoder step a token; a label takes one in all.
RATIONALES_SCORED = 200


@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    """Counts denormal numbers as 0: moments of rarely used weights become denormal, with which a step takes seconds.

    Afterwards they are numbers again, for whatever else the process does.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@denormals_flushed()
def train_trial(
    trial: Trial,
    folder: TrialFolder,
    examples: pd.DataFrame | Path,
    annotations: pd.DataFrame | Path | None,
    provenance: dict[str, Any] | None = None,
    on_score: Callable[[dict[str, float]], None] | None = None,
    teacher_test: dict[str, str] | None = None,
    teacher_rationales: dict[str, str] | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Trains, selects on validation, scores on test, and leaves everything in the trial's folder.

    A folder with a checkpoint of an interrupted attempt is continued from it. Of several workers (processes of one
    torch.distributed group) each calls this, with a folder that shows the same checkpoints; the first one writes.

    Args:
        examples: the Example table, all splits, or its Parquet file; validation and test need gold labels.
        annotations: the Annotation table, or its file, for methods that need it.
        provenance: what to write into the student's card about data and teacher.
        on_score: called by every worker with each validation score, a dict with `step`, `validation_accuracy` and
            `train_loss`.
        teacher_test: test example id → the teacher's own label, to report agreement; nothing is trained on it.
        teacher_rationales: validation or test example id → the teacher's own rationale, "" if it has none: the inputs of a
            method that has rationales as inputs, and what other students' rationales are compared with.
        cache: a folder that trials share: encoded pairs are kept in it, and mapped into memory.

    Returns:
        The content of `result.json`; an empty dict on workers other than the first.

    Raises:
        CotdError: the method lacks gold labels, annotations or rationales, or would see a single label; the loss is not a
            number, the GPU's memory is exhausted, or the disk is full: the last good checkpoint is kept.
    """
    started = time.perf_counter()
    task, method = parse_task(trial.task), METHODS[trial.method]
    validation, test = (labelled(read_split(examples, split)) for split in ("validation", "test"))
    inputs = teacher_rationales if method.rationale_as_input else None
    if method.rationale_as_input:
        require_rationales(trial.method, {"validation": validation, "test": test}, teacher_rationales)

    torch.manual_seed(trial.seed)
    student = untrained_student(trial, task)
    with explain_full_disk(folder.path):
        parts = [training_part(stage, student, examples, annotations, cache) for stage in trial.stages]
        for stage, pairs in zip(trial.stages, parts, strict=True):
            require_both_labels(stage, task, len(pairs), pairs.used_verbalizers(), validation)

        training_started = time.perf_counter()
        trainer = train_stages(trial, student, parts, validation, folder, on_score, inputs)
        train_seconds = time.perf_counter() - training_started
        if trial.training.finetune.lora:
            merge_lora(student.model)
        if not trainer.is_world_process_zero():
            return {}

        validated = calibrated_predictions(student, validation, inputs)
        validation_metrics = score_predictions(validated, task)
        student.validated = answers = None if student.free_answers else validated_answers(validated)
        curve = [list(point) for point in risk_coverage(answers.confidence, answers.right)] if answers else []
        predictions = predictions_table(student, test, inputs)
        test_metrics = score_predictions(predictions, task, teacher_test)
        if student.can_explain:
            explained = test.head(RATIONALES_SCORED)
            references = [(teacher_rationales or {}).get(i, "") for i in explained["id"]]
            predicted = predictions["predicted"].head(RATIONALES_SCORED).to_list()
            written = student.explain(list(explained["text"]), own_choices(explained))
            test_metrics |= score_rationales(written, predicted, task, references)
            write_parquet(pd.DataFrame({"example_id": explained["id"], "rationale": written}), folder.rationales)

        identity = {
            "trial_id": trial.id, "method": trial.method, "fraction": trial.fraction, "size": trial.size, "seed": trial.seed,
            "precision": choose_dtype(trial.training.precision, torch.cuda.is_available()),
        }  # fmt: skip
        student.card |= {
            **identity, "base": trial.model, "temperature": student.temperature, "training": trial.training.model_dump(),
            "metrics": {"validation": validation_metrics, "test": test_metrics}, **(provenance or {}),
        }  # fmt: skip
        train_rows = select_fraction(read_split(examples, "train"), trial.fraction)
        student.seen = seen_in_training(train_rows, validation, trial.model)
        student.save(folder.student)
        validated.to_parquet(folder.validation, index=False)
        predictions.to_parquet(folder.predictions, index=False)
        result = {
            **identity, "variant": trial.variant, "validation": validation_metrics, "test": test_metrics,
            "best_step": trainer.first_step + trainer.state.best_global_step, "steps": trainer.step,
            **counted(parts), "parameters": sum(p.numel() for p in student.model.parameters()),
            "temperature": student.temperature, "risk_coverage": curve, "train_seconds": train_seconds,
            "seconds": time.perf_counter() - started,
        }  # fmt: skip
        folder.write_result(result)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    folder.error.unlink(missing_ok=True)
    return result


def train_stages(
    trial: Trial,
    student: Student,
    parts: Sequence[EncodedPairs],
    validation: pd.DataFrame,
    folder: TrialFolder,
    on_score: Callable[[dict[str, float]], None] | None,
    rationales: dict[str, str] | None,
) -> StudentTrainer:
    """Trains a student by each stage of its method in turn, and returns the trainer of the last one.

    Each stage begins with the best weights of the one before. An interrupted attempt is continued from the last checkpoint that
    all workers see, of the last stage that has one: of a finished stage the checkpoints stay until the trial ends.

    Args:
        parts: what each stage is trained on.
    """
    stages = trial.stages
    folders = [folder.of_stage(number) for number in range(len(stages))] if len(stages) > 1 else [folder]
    seen = [(number, step) for number, part in enumerate(folders) for step in part.complete_checkpoints()]
    latest = latest_of_all(seen)
    checkpoint = folders[latest[0]].resumable(latest[1]) if latest else None
    for number in range(latest[0] if latest else 0, len(stages)):
        first_step = sum(stage.training.steps for stage in stages[:number])
        trainer = StudentTrainer(
            student, parts[number], validation, stages[number], folders[number], on_score, rationales, first_step
        )
        if latest and checkpoint and trainer.is_world_process_zero():
            # Later ones, which another worker has not, are trained anew.
            for later in (folders[n].checkpoint(step) for n, step in seen if (n, step) > latest):
                shutil.rmtree(later, ignore_errors=True)
        trainer.fit(checkpoint)
        checkpoint = None
    return trainer


def counted(parts: Sequence[EncodedPairs]) -> dict[str, int]:
    """How many examples the stages of a trial learn from, and what `EncodedPairs.counts` says of all their pairs."""
    counts = [part.counts() for part in parts]
    examples = np.unique(np.concatenate([part.examples["id"] for part in parts]))
    return {"train_examples": len(examples), **{key: sum(count[key] for count in counts) for key in counts[0]}}


def untrained_student(trial: Trial, task: Task) -> Student:
    """The base model as a student that does what the trial's method teaches."""
    method, settings = METHODS[trial.method], trial.training
    model, tokenizer = load_base(trial.model, task.labels)
    set_dropout(model, settings.dropout)
    if lora := settings.finetune.lora:
        add_lora(model, lora.rank, lora.alpha, lora.targets)
    elif settings.finetune.last_layers:
        train_last_layers(model, settings.finetune.last_layers)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.disable_input_require_grads()  # a hook that only the older, re-entrant kind needs
    card = {
        "method": trial.method, "writes_rationales": method.writes_rationales,
        "rationale_before_label": method.rationale_before_label, "rationale_after_label": method.rationale_after_label,
        "rationale_as_input": method.rationale_as_input,
        "shared_encoder": trial.shares_encoder, "truncation": trial.truncation,
        "max_input_tokens": settings.max_input_tokens, "max_target_tokens": settings.max_target_tokens, "chat": settings.chat,
    }  # fmt: skip
    return Student(model, tokenizer, task, card)


def training_part(
    trial: Trial, student: Student, examples: pd.DataFrame | Path, annotations: pd.DataFrame | Path | None, cache: Path | None
) -> EncodedPairs:
    """The encoded pairs of the trial's fraction of the training examples.

    Raises:
        CotdError: the method needs gold labels or annotations, and there are none.
    """

    def encode(folder: Path) -> None:
        table = pd.read_parquet(annotations) if isinstance(annotations, Path) else annotations
        encode_trial(trial, examples, table, student.backend, folder)

    every = cached_pairs(cache, trial, student.backend, encode) if cache else encode_here(encode)
    rows = fraction_rows(every.train_rows, trial.fraction)
    part = every.head(rows)
    if not len(part):
        labelled = read_split(examples, "train").head(rows)["label"].notna().sum()
        raise CotdError(missing_input(METHODS[trial.method], rows, int(labelled)))
    return part


def calibrated_predictions(student: Student, validation: pd.DataFrame, rationales: dict[str, str] | None) -> pd.DataFrame:
    """A student's predictions of validation examples, by the temperature that fits their gold answers best, which it then has."""
    if student.free_answers:
        return predictions_table(student, validation, rationales)
    choices = own_choices(validation)
    logits, truncated = student.label_logits(list(validation["text"]), align(validation, rationales), choices)
    options = [student.task.options(own) or () for own in each_or_none(choices, len(validation))]
    gold = [own.index(label) for own, label in zip(options, validation["label"], strict=True)]
    student.temperature = fit_temperature(logits.numpy(), np.array(gold))
    return tabulate(student.predictions(logits, truncated, choices), validation, student.task)


def read_split(examples: pd.DataFrame | Path, split: str) -> pd.DataFrame:
    """A split of the Example table; only its rows are read from a file."""
    if isinstance(examples, Path):
        return pd.read_parquet(examples, filters=[("split", "==", split)])
    return examples[examples["split"] == split]


def labelled(examples: pd.DataFrame) -> pd.DataFrame:
    """The examples with a gold label."""
    return examples[examples["label"].notna()]
