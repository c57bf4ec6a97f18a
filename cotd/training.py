"""Trains one student: the multi-task objective, the loop (transformers' Trainer), selection and scoring.

L = L_label + λ L_rationale, both the mean token cross-entropy of the target sequence (Hsieh et al. 2023, equation 3;
λ is `training.rationale_weight`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.errors import CotdError
from cotd.evaluation import beside, fit_temperature, predictions_table, score_predictions
from cotd.hardware import choose_dtype
from cotd.methods import METHODS, training_pairs
from cotd.optimizers import trainer_optimizer
from cotd.rationales import score_rationales
from cotd.student import Student, find, load_base, truncate
from cotd.task import Task, get_task
from cotd.training_checks import not_a_number, out_of_memory, require_both_labels, require_rationales
from cotd.trials import Trial, TrialFolder, select_fraction

TASKS_TRAINED = ("label", "rationale", "joint")
# Test reviews whose rationales are written and scored: that takes a decoder step a token, where a label takes one.
RATIONALES_JUDGED = 200


def train_trial(
    trial: Trial,
    folder: TrialFolder,
    reviews: pd.DataFrame,
    annotations: pd.DataFrame | None,
    provenance: dict[str, Any] | None = None,
    on_score: Callable[[dict[str, float]], None] | None = None,
    teacher_test: dict[str, str] | None = None,
    teacher_rationales: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Trains, selects on validation, scores on test, and leaves everything in the trial's folder.

    A folder that holds a checkpoint of a killed attempt is continued from it.

    Args:
        reviews: the Review table, all splits; validation and test need gold labels.
        annotations: the Annotation table, for methods that need it.
        provenance: what to write into the student's card about data and teacher.
        on_score: called with each validation score, a dict with `step`, `validation_accuracy` and `train_loss`.
        teacher_test: test review id → the teacher's own label, to report agreement; nothing is trained on it.
        teacher_rationales: validation or test review id → the teacher's own rationale, "" where it has none: what a
            student reads whose method has rationales as inputs, and what others' rationales are compared with.

    Returns:
        What `result.json` holds.

    Raises:
        CotdError: the method misses gold labels, annotations or the rationales it reads, or would see one label only; the
            loss is no longer a number, or the GPU's memory ran out: the last good checkpoint is kept.
    """
    import shutil

    import torch

    started = time.perf_counter()
    task, method = get_task(trial.task), METHODS[trial.method]
    splits = {s: reviews[(reviews["split"] == s) & reviews["label"].notna()] for s in ("validation", "test")}
    train = select_fraction(reviews[reviews["split"] == "train"], trial.fraction)
    pairs = training_pairs(method, train, annotations, task, trial.training.rationale_weight)
    require_both_labels(trial, task, pairs, splits["validation"])
    if method.reads_rationales:
        require_rationales(trial.method, splits, teacher_rationales)
    read = teacher_rationales if method.reads_rationales else None

    torch.manual_seed(trial.seed)
    model, tokenizer = load_base(trial.model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = trial.training.dropout
        elif isinstance(getattr(module, "dropout", None), float):  # attention keeps its rate as a number
            module.dropout = trial.training.dropout
    card = {
        "method": trial.method,
        "writes_rationales": method.writes_rationales,
        "reasons_first": method.reasons_first,
        "reads_rationales": method.reads_rationales,
        "max_input_tokens": trial.training.max_input_tokens,
        "max_target_tokens": trial.training.max_target_tokens,
    }
    student = Student(model, tokenizer, task, card)
    settings = trial.training
    rows = encode_pairs(pairs, tokenizer, settings.max_input_tokens, settings.max_target_tokens, task.answer_mark)
    trainer = make_trainer(student, rows, splits["validation"], trial, folder, on_score, read)
    trained_from = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=latest_checkpoint(folder.checkpoints))
    except torch.OutOfMemoryError as error:
        raise CotdError(out_of_memory(trial, trainer.state.global_step + 1, error)) from error
    train_seconds = time.perf_counter() - trained_from
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
        "train_reviews": int(pairs["review_id"].nunique()), "train_pairs": len(pairs), "train_seconds": train_seconds,
        "seconds": time.perf_counter() - started, "parameters": sum(p.numel() for p in model.parameters()),
        "temperature": student.temperature, **{k: sum(row[k] for row in rows) for k in ("cut_inputs", "cut_targets")},
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


def encode_pairs(
    pairs: pd.DataFrame, tokenizer: Any, max_input: int, max_target: int, answer_mark: str = Task.answer_mark
) -> list[dict[str, Any]]:
    """One row a review: its id, its pairs' token ids and weights by task, in the order of the pairs, and how many were cut.

    Inputs and targets are cut to the limits, their last token staying the end of sequence. Where a target is a rationale
    and a label, the rationale is what is cut.
    """
    inputs = tokenizer(list(pairs["input"]))["input_ids"]
    targets = tokenizer(text_target=list(pairs["target"]))["input_ids"]
    mark = tokenizer(text_target=answer_mark, add_special_tokens=False)["input_ids"]
    rows: dict[str, dict[str, Any]] = {}
    for pair, source, target in zip(pairs.itertuples(), inputs, targets, strict=True):
        row = rows.setdefault(
            pair.review_id,
            {"review_id": pair.review_id, "cut_inputs": 0, "cut_targets": 0} | {task: [] for task in TASKS_TRAINED},
        )
        after = find(target[::-1], mark[::-1]) if pair.task == "joint" else None  # tokens after the last mark
        if pair.task == "joint" and after is None:
            raise CotdError(f"the base model's tokenizer does not keep '{answer_mark}' apart from what is around it.")
        keep = 1 if after is None else after + len(mark)
        row[pair.task].append((truncate(source, max_input), truncate(target, max_target, keep), pair.weight))
        row["cut_inputs"] += len(source) > max_input
        row["cut_targets"] += len(target) > max_target
    return list(rows.values())


def collate(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, Any]:
    """A batch of reviews: for each task its padded pairs, or no key where no review has one.

    Returns:
        task → {input_ids (B, S), attention_mask (B, S), labels (B, T) padded with -100, weight: the task's weight}, and
        `review_ids`, a list of strings.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    batch: dict[str, Any] = {"review_ids": [row["review_id"] for row in rows]}
    for task in TASKS_TRAINED:
        pairs = [pair for row in rows for pair in row[task]]
        if not pairs:
            continue
        inputs = pad_sequence([torch.tensor(p[0]) for p in pairs], batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(p[0]) for p in pairs])
        batch[task] = {
            "input_ids": inputs,
            "attention_mask": (torch.arange(inputs.shape[1]) < lengths[:, None]).long(),
            "labels": pad_sequence([torch.tensor(p[1]) for p in pairs], batch_first=True, padding_value=-100),
            "weight": torch.tensor([p[2] for p in pairs]).mean(),
        }
    return batch


def multi_task_loss(model: Any, batch: dict[str, Any], label_smoothing: float = 0.0) -> Any:
    """L_label + λ L_rationale of one collated batch: each task's mean token cross-entropy times its weight.

    Rationale and label as one target have the one loss of that sequence.
    """
    import torch

    total = torch.zeros(())
    for pairs in (batch[task] for task in TASKS_TRAINED if task in batch):
        logits = model(
            input_ids=pairs["input_ids"], attention_mask=pairs["attention_mask"], labels=pairs["labels"]
        ).logits  # (B, T, V)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), pairs["labels"].flatten(), ignore_index=-100, label_smoothing=label_smoothing
        )
        total = total.to(loss.device) + pairs["weight"].to(loss.device) * loss
    return total


def make_trainer(
    student: Student,
    rows: list[dict[str, Any]],
    validation: pd.DataFrame,
    trial: Trial,
    folder: TrialFolder,
    on_score: Callable[[dict[str, float]], None] | None,
    rationales: dict[str, str] | None = None,
) -> Any:
    """transformers' Trainer with this project's loss and validation score; it owns loop, schedule and checkpoints."""
    import torch
    from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
    from transformers.trainer_pt_utils import LengthGroupedSampler

    settings = trial.training
    texts, gold = list(validation["text"]), list(validation["label"])
    use_gpu = torch.cuda.is_available()

    class MultiTaskTrainer(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            """Batches of similar length: random batches of short reviews were half padding."""
            lengths = [len((row["label"] or row["joint"])[0][0]) for row in rows]
            generator = torch.Generator().manual_seed(trial.seed)
            sampler = LengthGroupedSampler(settings.batch_size, lengths=lengths, generator=generator)
            # Each epoch's order follows from its number, so that a resumed trial goes on as it would have.
            sampler.set_epoch = lambda epoch: generator.manual_seed(trial.seed + 1_000_003 * epoch)
            return sampler

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            with self.compute_loss_context_manager():
                loss = multi_task_loss(model, inputs, settings.label_smoothing)
            if not loss.isfinite():
                raise CotdError(not_a_number(self.state.global_step + 1, "the loss", inputs["review_ids"]))
            return loss

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            """Validation accuracy by label scoring: what the student is selected by is what it is served by."""
            was_training = self.model.training
            self.model.eval()
            predictions = student.predict(texts, beside(validation, rationales))
            self.model.train(was_training)
            # A checkpoint is written after this: never one of a student whose weights are spoilt.
            if not all(isfinite(p.score) for p in predictions):
                raise CotdError(not_a_number(self.state.global_step, "a validation score", []))
            predicted = [p.label for p in predictions]
            accuracy = sum(p == g for p, g in zip(predicted, gold, strict=True)) / len(gold)
            losses = [e["loss"] for e in self.state.log_history if "loss" in e]
            point = {"step": self.state.global_step, "validation_accuracy": accuracy}
            point |= {"train_loss": losses[-1]} if losses else {}
            with folder.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**point, "time": round(time.time(), 3)}) + "\n")
            if on_score:
                on_score(point)
            metrics = {"eval_accuracy": accuracy}
            self.log(metrics)
            self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    eval_every = min(settings.eval_every, settings.steps)
    precision = choose_dtype(settings.precision, use_gpu)
    optim, optimizer = trainer_optimizer(settings.optimizer, settings.learning_rate, settings.weight_decay, use_gpu)
    arguments = TrainingArguments(
        output_dir=str(folder.checkpoints), max_steps=settings.steps, per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate, warmup_steps=settings.warmup_steps, weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.schedule, optim=optim, eval_strategy="steps", eval_steps=eval_every,
        save_strategy="steps", save_steps=eval_every, save_total_limit=1, load_best_model_at_end=True,
        metric_for_best_model="eval_accuracy", greater_is_better=True, logging_steps=eval_every, seed=trial.seed,
        data_seed=trial.seed, report_to="none", disable_tqdm=True, remove_unused_columns=False, use_cpu=not use_gpu,
        bf16=precision == "bfloat16", dataloader_pin_memory=use_gpu, log_level="error", logging_strategy="steps",
    )  # fmt: skip
    pad = student.tokenizer.pad_token_id
    trainer = MultiTaskTrainer(
        model=student.model, args=arguments, train_dataset=rows, eval_dataset=rows[:1], data_collator=lambda b: collate(b, pad),
        optimizer_cls_and_kwargs=optimizer,
    )  # fmt: skip
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if settings.patience:
        trainer.add_callback(EarlyStoppingCallback(settings.patience))
    return trainer


def latest_checkpoint(directory: Path) -> str | None:
    """The newest complete checkpoint of a killed attempt, or None."""
    found = [p for p in directory.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    return str(max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]))) if found else None
