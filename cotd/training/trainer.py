"""transformers' Trainer with this project's loss, validation score and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast
from torch.utils.data import DataLoader, RandomSampler
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

from cotd.errors import CotdError
from cotd.evaluation.metrics import align, own_choices
from cotd.students.student import Student
from cotd.training.checks import not_a_number, out_of_memory
from cotd.training.collate import collate, multi_task_loss
from cotd.training.distributed import leave_unwrapped, share_weights, sum_gradients, use_one_gpu
from cotd.training.ema import WeightAverage
from cotd.training.encoding import EncodedPairs
from cotd.training.folder import TrialFolder
from cotd.training.methods import METHODS
from cotd.training.optimizers import TRAINER_NAMES, custom_optimizer
from cotd.training.trial import Trial
from cotd.utils.hardware import choose_dtype


class StudentTrainer(Trainer):
    """Trains a student; the loop, the schedule and the checkpoints are transformers'.

    Args:
        validation: labelled examples, by which the student is selected.
        on_score: called with each validation score.
        rationales: example id → the teacher's rationale, for a student that reads them.
        first_step: the steps of the stages before this one.

    Attributes:
        average: the average of the weights, if that is what is scored and kept.
    """

    def __init__(
        self,
        student: Student,
        pairs: EncodedPairs,
        validation: pd.DataFrame,
        trial: Trial,
        folder: TrialFolder,
        on_score: Callable[[dict[str, float]], None] | None = None,
        rationales: Mapping[str, str] | None = None,
        first_step: int = 0,
    ):
        settings, arguments = trial.training, training_arguments(trial, folder)
        collator = partial(
            collate,
            backend=student.backend,
            micro_batch_size=settings.micro_batch_size,
            worker=(arguments.process_index, arguments.world_size),
        )
        super().__init__(
            student.model, arguments, collator, pairs, eval_dataset=pairs[:1],
            optimizer_cls_and_kwargs=custom_optimizer(
                settings.optimizer, settings.learning_rate, settings.weight_decay, settings.beta2
            ),
        )  # fmt: skip
        self.student, self.trial, self.folder, self.on_score = student, trial, folder, on_score
        self.first_step = first_step
        self.texts, self.gold = list(validation["text"]), list(validation["label"])
        self.choices = own_choices(validation)
        self.rationales = align(validation, rationales)
        self.average: WeightAverage | None = None
        leave_unwrapped(self)
        self.remove_callback(PrinterCallback)
        if settings.weight_average:
            self.average = WeightAverage(student.model, settings.weight_average)  # now the model is on its device
            self.add_callback(self.average)
        if settings.patience:
            self.add_callback(EarlyStoppingCallback(settings.patience))

    @property
    def step(self) -> int:
        """Steps done, those of earlier stages among them."""
        return self.first_step + self.state.global_step

    def _get_train_sampler(self, *_: Any) -> Any:
        """A random order, as in the papers: batches of like length save little where nothing is padded, and learn less."""
        generator = torch.Generator().manual_seed(self.trial.seed)
        sampler: Any = RandomSampler(self.train_dataset, generator=generator)
        # Each epoch's order follows from its number, so that a resumed trial sees the order it would have seen.
        sampler.set_epoch = lambda epoch: generator.manual_seed(self.trial.seed + 1_000_003 * epoch)
        return sampler

    def get_train_dataloader(self) -> Any:
        """The same batches for every worker, each of which collates its part: accelerate would deal out whole batches."""
        loader = DataLoader(
            self.train_dataset, self.trial.training.batch_size, sampler=self._get_train_sampler(),
            collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory,
        )  # fmt: skip
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

    def training_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        """Adds up the gradients of a batch's parts, whose size decides how much memory it takes, and nothing else."""
        model.train()
        inputs, settings = self._prepare_inputs(inputs), self.trial.training
        total = torch.zeros((), device=self.args.device)
        rationale_weight = settings.rationale_weight_at(self.state.global_step)
        information_weight = METHODS[self.trial.method].mutual_information
        information_weight = information_weight and information_weight / inputs["examples"].item()
        for part in inputs["parts"]:
            with self.accelerator.autocast():
                loss = multi_task_loss(
                    self.student.backend, part, inputs["totals"], settings.label_smoothing, rationale_weight, information_weight
                )
            if not loss.isfinite():
                raise CotdError(not_a_number(self.step + 1, "the loss", part["example_ids"]))
            self.accelerator.backward(loss)
            total += loss.detach()
        sum_gradients(self.model.parameters(), total)
        return total

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation accuracy, which the first worker computes and sends to the others."""
        computed = self.validation_accuracy() if self.is_world_process_zero() else 0.0
        accuracy = broadcast(torch.tensor(computed, dtype=torch.float64, device=self.args.device)).item()
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        point = {"step": self.step, "validation_accuracy": accuracy}
        point |= {"train_loss": losses[-1]} if losses else {}
        if self.is_world_process_zero():
            self.folder.add_point(point)
        if self.on_score:
            self.on_score(point)
        metrics = {"eval_accuracy": accuracy}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def validation_accuracy(self) -> float:
        """By what it answers: a student is selected by what it is served by.

        Raises:
            CotdError: a score is not a number. A checkpoint is written after this, and never of such a student.
        """
        self.student.model = (self.average.model if self.average else self.model).eval()
        predictions = self.student.predict(self.texts, self.rationales, self.choices)
        self.student.model = self.model
        if not all(p.score is None or isfinite(p.score) for p in predictions):
            raise CotdError(not_a_number(self.step, "a validation score", []))
        return sum(p.label == gold for p, gold in zip(predictions, self.gold, strict=True)) / len(self.gold)

    def save_model(self, output_dir: str | None = None, **options: Any) -> None:
        """Saves the weights and their average."""
        super().save_model(output_dir, **options)
        if self.average and self.is_world_process_zero():
            self.average.save(output_dir or self.folder.checkpoints)

    def _load_best_model(self) -> None:
        """On the first worker alone, which has written the checkpoints: the others may not see them. `fit` sends the weights."""
        if self.is_world_process_zero():
            super()._load_best_model()
            if self.average:  # the Trainer has loaded the best weights, not their average
                self.average.load(self.state.best_model_checkpoint)

    def fit(self, checkpoint: Path | None) -> None:
        """Trains to the end, and gives the student the best weights, on every worker.

        Args:
            checkpoint: what is continued from.

        Raises:
            CotdError: the loss is not a number, or the GPU's memory is exhausted.
        """
        if checkpoint and self.average:
            self.average.load(checkpoint)
        try:
            self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        except torch.OutOfMemoryError as error:
            raise CotdError(out_of_memory(self.trial, self.step + 1, error)) from error
        if self.average:
            self.student.model = self.average.model
        share_weights(self.student.model)
        self.student.model.eval()
        self.accelerator.wait_for_everyone()  # the first worker removes the checkpoints, which others look at until here


def training_arguments(trial: Trial, folder: TrialFolder) -> TrainingArguments:
    """The Trainer's arguments for a trial."""
    settings, use_gpu = trial.training, torch.cuda.is_available()
    eval_every = min(settings.eval_every, settings.steps)
    arguments = TrainingArguments(
        output_dir=str(folder.checkpoints), max_steps=settings.steps, per_device_train_batch_size=settings.batch_size,
        optim=TRAINER_NAMES[settings.optimizer], learning_rate=settings.learning_rate, warmup_steps=settings.warmup_steps,
        lr_scheduler_type=settings.schedule, weight_decay=settings.weight_decay, adam_beta2=settings.beta2,
        max_grad_norm=settings.gradient_clipping or 0.0, eval_strategy="steps", eval_steps=eval_every,
        save_strategy="steps", save_steps=eval_every, save_total_limit=1, load_best_model_at_end=True,
        metric_for_best_model="eval_accuracy", greater_is_better=True, logging_strategy="steps", logging_steps=eval_every,
        log_level="error", seed=trial.seed, data_seed=trial.seed, report_to="none", disable_tqdm=True, use_cpu=not use_gpu,
        remove_unused_columns=False, bf16=choose_dtype(settings.precision, use_gpu) == "bfloat16", dataloader_pin_memory=use_gpu,
    )  # fmt: skip
    use_one_gpu(arguments)
    arguments.seed += arguments.process_index  # dropout's; all other randomness is the trial's
    return arguments
