"""Trains one student: the multi-task objective, the loop (transformers' Trainer), selection and scoring.

L = L_label + λ L_rationale, both the mean token cross-entropy of the target sequence (Hsieh et al. 2023, equation 3;
λ is `training.rationale_weight`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.evaluation import fit_temperature, predictions_table, score_predictions
from cotd.hardware import choose_dtype
from cotd.methods import METHODS, training_pairs
from cotd.optimizers import trainer_optimizer
from cotd.student import Student, load_base, truncate
from cotd.task import get_task
from cotd.trials import Trial, TrialFolder, select_fraction

TASKS_TRAINED = ("label", "rationale")


def train_trial(
    trial: Trial,
    folder: TrialFolder,
    reviews: pd.DataFrame,
    annotations: pd.DataFrame | None,
    provenance: dict[str, Any] | None = None,
    on_score: Callable[[dict[str, float]], None] | None = None,
    teacher_test: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Trains, selects on validation, scores on test, and leaves everything in the trial's folder.

    A folder that holds a checkpoint of a killed attempt is continued from it.

    Args:
        reviews: the Review table, all splits; validation and test need gold labels.
        annotations: the Annotation table, for methods that need it.
        provenance: what to write into the student's card about data and teacher.
        on_score: called with each validation score, a dict with `step`, `validation_accuracy` and `train_loss`.
        teacher_test: test review id → the teacher's own label, to report agreement; nothing is trained on it.

    Returns:
        What `result.json` holds.

    Raises:
        CotdError: the method misses gold labels or annotations.
    """
    import shutil

    import torch

    started = time.perf_counter()
    task, method = get_task(trial.task), METHODS[trial.method]
    splits = {s: reviews[(reviews["split"] == s) & reviews["label"].notna()] for s in ("validation", "test")}
    train = select_fraction(reviews[reviews["split"] == "train"], trial.fraction)
    pairs = training_pairs(method, train, annotations, task, trial.training.rationale_weight)

    torch.manual_seed(trial.seed)
    model, tokenizer = load_base(trial.model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = trial.training.dropout
        elif isinstance(getattr(module, "dropout", None), float):  # attention keeps its rate as a number
            module.dropout = trial.training.dropout
    card = {
        "writes_rationales": method.rationale is not None,
        "max_input_tokens": trial.training.max_input_tokens,
        "max_target_tokens": trial.training.max_target_tokens,
    }
    student = Student(model, tokenizer, task, card)
    rows = encode_pairs(pairs, tokenizer, trial.training.max_input_tokens, trial.training.max_target_tokens)
    trainer = make_trainer(student, rows, splits["validation"], trial, folder, on_score)
    trained_from = time.perf_counter()
    trainer.train(resume_from_checkpoint=latest_checkpoint(folder.checkpoints))
    train_seconds = time.perf_counter() - trained_from
    model.eval()

    validation, test = splits["validation"], splits["test"]
    logits, _ = student.label_logits(list(validation["text"]))
    gold = validation["label"].map(task.labels.index).to_numpy()
    student.temperature = fit_temperature(logits.numpy(), gold)
    validation_metrics = score_predictions(predictions_table(student, validation), task.positive)
    predictions = predictions_table(student, test)
    metrics = score_predictions(predictions, task.positive, teacher_test)
    best_step = int(trainer.state.best_model_checkpoint.rsplit("-", 1)[1]) if trainer.state.best_model_checkpoint else 0
    result = {
        "trial_id": trial.id, "method": trial.method, "fraction": trial.fraction, "size": trial.size, "seed": trial.seed,
        "validation": validation_metrics, "test": metrics, "best_step": best_step, "steps": trainer.state.global_step,
        "train_reviews": int(pairs["review_id"].nunique()), "train_pairs": len(pairs), "train_seconds": train_seconds,
        "seconds": time.perf_counter() - started, "parameters": sum(p.numel() for p in model.parameters()),
        "temperature": student.temperature,
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


def encode_pairs(pairs: pd.DataFrame, tokenizer: Any, max_input: int, max_target: int) -> list[dict[str, Any]]:
    """One row a review: its pairs' token ids and weights by task, in the order of the pairs.

    Inputs and targets are cut to the limits, their last token staying the end of sequence.
    """
    inputs = tokenizer(list(pairs["input"]))["input_ids"]
    targets = tokenizer(text_target=list(pairs["target"]))["input_ids"]
    rows: dict[str, dict[str, Any]] = {}
    for pair, source, target in zip(pairs.itertuples(), inputs, targets, strict=True):
        row = rows.setdefault(pair.review_id, {task: [] for task in TASKS_TRAINED})
        row[pair.task].append((truncate(source, max_input), truncate(target, max_target), pair.weight))
    return list(rows.values())


def collate(rows: Sequence[dict[str, Any]], pad: int) -> dict[str, Any]:
    """A batch of reviews: for each task its padded pairs, or no key where no review has one.

    Returns:
        task → {input_ids (B, S), attention_mask (B, S), labels (B, T) padded with -100, weight: the task's weight}.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    batch = {}
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
    """L_label + λ L_rationale of one collated batch: each task's mean token cross-entropy times its weight."""
    import torch

    total = torch.zeros(())
    for pairs in batch.values():
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
            lengths = [len(row["label"][0][0]) for row in rows]
            generator = torch.Generator().manual_seed(trial.seed)
            sampler = LengthGroupedSampler(settings.batch_size, lengths=lengths, generator=generator)
            # Each epoch's order follows from its number, so that a resumed trial goes on as it would have.
            sampler.set_epoch = lambda epoch: generator.manual_seed(trial.seed + 1_000_003 * epoch)
            return sampler

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            with self.compute_loss_context_manager():
                return multi_task_loss(model, inputs, settings.label_smoothing)

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            """Validation accuracy by label scoring: what the student is selected by is what it is served by."""
            was_training = self.model.training
            self.model.eval()
            predicted = [p.label for p in student.predict(texts)]
            self.model.train(was_training)
            accuracy = sum(p == g for p, g in zip(predicted, gold, strict=True)) / len(gold)
            losses = [e["loss"] for e in self.state.log_history if "loss" in e]
            point = {"step": self.state.global_step, "validation_accuracy": accuracy}
            point |= {"train_loss": losses[-1]} if losses else {}
            with folder.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(point) + "\n")
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
