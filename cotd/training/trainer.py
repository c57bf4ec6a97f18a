"""transformers' Trainer with this project's loss, validation score and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from math import isfinite
from typing import Any

import pandas as pd

from cotd.errors import CotdError
from cotd.evaluation.metrics import align
from cotd.students.student import Student
from cotd.training.checks import not_a_number
from cotd.training.collate import collate, multi_task_loss
from cotd.training.distributed import leave_unwrapped, sum_gradients, train_on_one_gpu
from cotd.training.ema import WeightAverage
from cotd.training.encoding import EncodedPairs
from cotd.training.folder import TrialFolder
from cotd.training.optimizers import trainer_optimizer
from cotd.training.trial import Trial
from cotd.utils.hardware import choose_dtype


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
            predictions = student.predict(texts, align(validation, rationales))
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
