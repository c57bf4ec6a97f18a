"""Trains one student: the loop (transformers' Trainer), selection on validation, and scoring on test."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pandas as pd

from cotd.batches import collate, multi_task_loss
from cotd.distributed import leave_unwrapped, sum_gradients, train_on_one_gpu
from cotd.dropout import set_dropout
from cotd.encoding import EncodedPairs, cached_pairs, encode_trial
from cotd.errors import CotdError, full_disk
from cotd.evaluation import beside, fit_temperature, predictions_table, score_predictions
from cotd.hardware import choose_dtype
from cotd.methods import METHODS, missing_input
from cotd.optimizers import trainer_optimizer
from cotd.rationales import score_rationales
from cotd.student import Student, load_base
from cotd.task import get_task
from cotd.training_checks import disk_is_full, not_a_number, out_of_memory, require_both_labels, require_rationales
from cotd.trials import Trial, TrialFolder, fraction_rows, write_json
from cotd.weight_average import WeightAverage

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
    if method.reads_rationales:
        require_rationales(trial.method, splits, teacher_rationales)
    read = teacher_rationales if method.reads_rationales else None

    torch.manual_seed(trial.seed)
    model, tokenizer = load_base(trial.model)
    set_dropout(model, trial.training.dropout)
    if trial.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.disable_input_require_grads()  # a hook that only its older, re-entrant kind needs
    card = {
        "method": trial.method,
        "writes_rationales": method.writes_rationales,
        "reasons_first": method.reasons_first,
        "reads_rationales": method.reads_rationales,
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
    logits, _ = student.label_logits(list(validation["text"]), beside(validation, read))
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


def make_trainer(
    student: Student,
    rows: EncodedPairs,
    validation: pd.DataFrame,
    trial: Trial,
    folder: TrialFolder,
    on_score: Callable[[dict[str, float]], None] | None,
    rationales: dict[str, str] | None = None,
) -> Any:
    """transformers' Trainer with this project's loss and validation score; it owns loop, schedule and checkpoints."""
    import torch
    from accelerate.data_loader import prepare_data_loader
    from accelerate.utils import broadcast
    from torch.utils.data import DataLoader, RandomSampler
    from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

    settings = trial.training
    texts, gold = list(validation["text"]), list(validation["label"])
    use_gpu = torch.cuda.is_available()

    class MultiTaskTrainer(Trainer):
        average: WeightAverage | None = None

        def _get_train_sampler(self, *_: Any) -> Any:
            """A random order, as in the papers: batches of like length save little where nothing is padded, and learn less."""
            generator = torch.Generator().manual_seed(trial.seed)
            sampler: Any = RandomSampler(rows, generator=generator)
            # Each epoch's order follows from its number, so that a resumed trial goes on as it would have.
            sampler.set_epoch = lambda epoch: generator.manual_seed(trial.seed + 1_000_003 * epoch)
            return sampler

        def get_train_dataloader(self) -> Any:
            """The same batches for every worker, of which `collate` takes its share: accelerate would deal out batches."""
            loader = DataLoader(
                self.train_dataset, settings.batch_size, sampler=self._get_train_sampler(), collate_fn=self.data_collator,
                pin_memory=use_gpu,
            )  # fmt: skip
            return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

        def training_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            """Adds up the gradients of a batch's parts: the parts' sizes decide how much memory it takes, and nothing else."""
            model.train()
            inputs = self._prepare_inputs(inputs)
            total = torch.zeros((), device=self.args.device)
            share = settings.rationale_weight_left(self.state.global_step)
            for part in inputs["parts"]:
                with self.accelerator.autocast():
                    loss = multi_task_loss(self.model, part, inputs["totals"], settings.label_smoothing, share)
                if not loss.isfinite():
                    raise CotdError(not_a_number(self.state.global_step + 1, "the loss", part["review_ids"]))
                self.accelerator.backward(loss)
                total += loss.detach()
            sum_gradients(self.model.parameters(), total)
            return total

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            """Validation accuracy, which the first worker finds and tells the others."""
            found = 0.0
            if self.is_world_process_zero():
                with self.average.in_place() if self.average else nullcontext():
                    found = self.validation_accuracy()
            accuracy = broadcast(torch.tensor(found, dtype=torch.float64, device=self.args.device)).item()
            losses = [e["loss"] for e in self.state.log_history if "loss" in e]
            point = {"step": self.state.global_step, "validation_accuracy": accuracy}
            point |= {"train_loss": losses[-1]} if losses else {}
            if self.is_world_process_zero():
                folder.add_point(point)
            if on_score:
                on_score(point)
            metrics = {"eval_accuracy": accuracy}
            self.log(metrics)
            self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def save_model(self, output_dir: str | None = None, **how: Any) -> None:
            super().save_model(output_dir, **how)
            if self.average and self.is_world_process_zero():
                self.average.save(output_dir or folder.checkpoints)

        def validation_accuracy(self) -> float:
            """By label scoring: what the student is selected by is what it is served by."""
            was_training = self.model.training
            self.model.eval()
            predictions = student.predict(texts, beside(validation, rationales))
            self.model.train(was_training)
            # A checkpoint is written after this: never one of a student whose weights are spoilt.
            if not all(isfinite(p.score) for p in predictions):
                raise CotdError(not_a_number(self.state.global_step, "a validation score", []))
            predicted = [p.label for p in predictions]
            return sum(p == g for p, g in zip(predicted, gold, strict=True)) / len(gold)

    class Averaging(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trainer.average:
                trainer.average.update(state.global_step)

    eval_every = min(settings.eval_every, settings.steps)
    precision = choose_dtype(settings.precision, use_gpu)
    optim, optimizer = trainer_optimizer(settings.optimizer, settings.learning_rate, settings.weight_decay)
    arguments = TrainingArguments(
        output_dir=str(folder.checkpoints), max_steps=settings.steps, per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate, warmup_steps=settings.warmup_steps, weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.schedule, optim=optim, eval_strategy="steps", eval_steps=eval_every,
        save_strategy="steps", save_steps=eval_every, save_total_limit=1, load_best_model_at_end=True,
        metric_for_best_model="eval_accuracy", greater_is_better=True, logging_steps=eval_every, seed=trial.seed,
        data_seed=trial.seed, report_to="none", disable_tqdm=True, remove_unused_columns=False, use_cpu=not use_gpu,
        bf16=precision == "bfloat16", dataloader_pin_memory=use_gpu, log_level="error", logging_strategy="steps",
    )  # fmt: skip
    train_on_one_gpu(arguments)
    worker = (arguments.process_index, arguments.world_size)
    arguments.seed += worker[0]  # that of dropout, all other randomness being that of the trial
    start = student.model.config.decoder_start_token_id
    trainer = MultiTaskTrainer(
        model=student.model, args=arguments, train_dataset=rows, eval_dataset=rows[:1],
        data_collator=lambda b: collate(b, start, settings.micro_batch_size, student.rationale_prompt, worker),
        optimizer_cls_and_kwargs=optimizer,
    )  # fmt: skip
    leave_unwrapped(trainer)
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if settings.weight_average:
        trainer.average = WeightAverage(
            student.model, settings.weight_average
        )  # on the device where the Trainer has put the model
        trainer.add_callback(Averaging)
    if settings.patience:
        trainer.add_callback(EarlyStoppingCallback(settings.patience))
    return trainer


def latest_checkpoint(directory: Path) -> str | None:
    """The newest complete checkpoint of a killed attempt, or None.

    The Trainer writes its state after everything else: where that can be read, the rest is there.
    """
    found = [p for p in directory.glob("checkpoint-*") if readable_state(p / "trainer_state.json")]
    return str(max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]))) if found else None


def adopt_checkpoint(checkpoint: Path) -> None:
    """Has a checkpoint say where the best one lies now: the Trainer notes a path, which was another machine's perhaps, and
    forgets the best one where that is not there."""
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    if (noted := state.get("best_model_checkpoint")) and Path(noted) != (here := checkpoint.parent / Path(noted).name):
        write_json(path, {**state, "best_model_checkpoint": str(here)})


def readable_state(path: Path) -> bool:
    """Whether a checkpoint's state is all there: a kill or a full disk may have cut it off."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def read_split(reviews: pd.DataFrame | Path, split: str) -> pd.DataFrame:
    """A split of the Review table, of which no more than that is read from a file."""
    if isinstance(reviews, Path):
        return pd.read_parquet(reviews, filters=[("split", "==", split)])
    return reviews[reviews["split"] == split]


def labelled(reviews: pd.DataFrame) -> pd.DataFrame:
    return reviews[reviews["label"].notna()]
