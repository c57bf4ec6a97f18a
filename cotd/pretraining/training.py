"""Trains the T5: transformers' Trainer with this package's batches and losses, checkpoints, held-out losses and probes."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cotd.config import digest
from cotd.distributed import leave_unwrapped, sum_gradients, train_on_one_gpu
from cotd.dropout import set_dropout
from cotd.errors import CotdError
from cotd.hardware import choose_dtype
from cotd.optimizers import trainer_optimizer
from cotd.pretraining.answers import Answers
from cotd.pretraining.batches import BatchedCorpus
from cotd.pretraining.config import PretrainConfig
from cotd.pretraining.corpus import Corpus, corpus_digest
from cotd.pretraining.probes import held_out_losses, probe, probe_reviews, zero_shot
from cotd.pretraining.rationales import Rationales
from cotd.pretraining.run_folder import RunFolder
from cotd.pretraining.tokenizer import SENTINELS
from cotd.student import first_tokens, resolve_model
from cotd.task import get_task
from cotd.training import latest_checkpoint

STATISTICS_BATCHES = 150
HEAD_SPREAD = 0.02


def run_digest(config: PretrainConfig) -> str:
    """What a run's weights depend on: a folder of another digest holds another run."""
    plain = config.model_dump(exclude={"name", "storage", "tracking_uri", "probe"})
    del plain["corpus"], plain["tokenizer"]
    for cosmetic in ("log_every", "save_every"):
        del plain["training"][cosmetic]
    # The prepared corpus is the same whoever is asked about how much of it, and whatever is held out; the weights are not.
    asked = [s.model_dump(include={"answers", "phrases", "noun", "rationales"}) for s in config.corpus.sources]
    return digest(plain | {"corpus": corpus_digest(config), "asked": asked, "held_out": config.corpus.held_out})


def chunk_split(corpus: Corpus, config: PretrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the chunks to train on, and of those held out (the first ones: documents are in a hash's order)."""
    held_out = min(config.corpus.held_out, len(corpus) // 10)
    return np.arange(held_out, len(corpus)), np.arange(held_out)


def load_tokenizer(folder: RunFolder) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder.corpus / "tokenizer", local_files_only=True)


def make_batches(
    config: PretrainConfig, corpus: Corpus, tokenizer: Any, chunks: np.ndarray, count: int, seed_offset: int = 0
) -> BatchedCorpus:
    """`count` batches of some of the corpus' chunks, of all the kinds that the recipe asks for."""
    sentinels = tokenizer.convert_tokens_to_ids(SENTINELS)
    t, answers = config.training, None
    asked: list[np.ndarray] = []

    def coded(texts: list[str]) -> list[np.ndarray]:
        return [np.array(row) for row in tokenizer(texts)["input_ids"]] if texts else []

    task = get_task(config.answer_teacher.task if config.answer_teacher else "sentiment")
    if config.asks_answers:
        answers = Answers.read(corpus).of(chunks)
        asked = coded([task.label_prefix + text for text in answers.texts])
    explained: list[tuple[np.ndarray, np.ndarray]] = []
    if config.training.steps and config.objectives.rationale_share:
        rationales = Rationales.read(config, corpus, tokenizer).of(chunks)
        prefixed = [task.rationale_prefix + text for text in rationales.texts]
        explained = list(zip(coded(prefixed), coded(rationales.rationales), strict=True))
    label_prefix = tokenizer(task.label_prefix.rstrip(), add_special_tokens=False)["input_ids"]
    return BatchedCorpus(
        corpus, chunks, answers, asked, first_tokens(tokenizer, task), label_prefix, explained, config.objectives, sentinels,
        t.batch_tokens, count, t.seed + seed_offset,
    )  # fmt: skip


def best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def loader_workers() -> int:
    """Processes that make batches beside a GPU, which takes them faster than one makes them."""
    mine = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of the workers on this machine
    return max(1, min(12, mine - 2))


def make_initial(config: PretrainConfig, corpus: Corpus, folder: RunFolder) -> None:
    """Writes the model before the first step: the one that the run goes on from, or random weights and a teacher's embeddings;
    and the statistics of the teacher's states."""
    import torch
    from transformers import T5Config

    from cotd.pretraining.embeddings import TeacherStatistics, hidden_alone
    from cotd.pretraining.model import EncoderTeacher, PretrainingT5, t5_config

    tokenizer, device = load_tokenizer(folder), best_device()
    start = resolve_model(config.start) if config.start else None
    model_config = (
        T5Config.from_pretrained(start) if start else t5_config(config.shape, len(tokenizer), config.training.dropout)
    )
    generator = torch.Generator().manual_seed(config.training.seed)
    train_chunks, _ = chunk_split(corpus, config)
    widths: dict[str, int] = {}
    values: dict[str, torch.Tensor] = {}
    statistics = None
    if config.encoder_teacher:
        teacher = EncoderTeacher(config.encoder_teacher, device, config.training.precision)
        widths |= {"hidden": teacher.width, "sentence": teacher.width}
        hidden = config.model_copy(update={"objectives": hidden_alone(config.objectives)})
        sample = make_batches(hidden, corpus, tokenizer, train_chunks, STATISTICS_BATCHES, seed_offset=1)
        statistics = TeacherStatistics(corpus, teacher, sample, len(tokenizer), device)
        values |= statistics.by_head()
    if config.asks_answers:
        widths["answer"] = Answers.read(corpus).components.shape[1]  # standardised already
    model_config.teacher_widths = widths
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        if start is None:
            model = PretrainingT5(model_config)
        else:  # the heads are new in any case
            model = PretrainingT5.from_pretrained(start, config=model_config, dtype=torch.float32)
        for head in widths:  # small, so that the first prediction is about the mean; not zero, where scaled steps would be tiny
            torch.nn.init.normal_(getattr(model, f"{head}_head").weight, std=HEAD_SPREAD)
            torch.nn.init.zeros_(getattr(model, f"{head}_head").bias)
            # Written out: of what a loaded model lacks transformers makes room, and knows no values for these.
            torch.nn.init.zeros_(getattr(model, f"{head}_mean"))
            torch.nn.init.ones_(getattr(model, f"{head}_spread"))
    with torch.no_grad():
        for name, value in values.items():
            getattr(model, name).copy_(value.cpu())
        if start:
            pass  # its own embeddings
        elif config.embeddings == "encoder_teacher":
            assert statistics is not None
            rows = statistics.embedding_rows(config.shape.d_model, generator)
            model.shared.weight[: len(rows)] = rows
        elif config.embeddings == "language_teacher":
            model.shared.weight.copy_(language_rows(config, tokenizer))
    scratch = folder.initial.with_name("initial.part")
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch)
    shutil.rmtree(folder.initial, ignore_errors=True)
    scratch.rename(folder.initial)


def language_rows(config: PretrainConfig, tokenizer: Any) -> Any:
    """First embeddings (V, d_model) from the language teacher's own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cotd.pretraining.embeddings import language_teacher_rows, project

    source = resolve_model(config.language_teacher)
    teacher = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    own = AutoTokenizer.from_pretrained(source)
    return project(language_teacher_rows(tokenizer, own, teacher.get_input_embeddings().weight.detach()), config.shape.d_model)


def train(
    config: PretrainConfig, folder: RunFolder, on_point: Callable[[dict[str, float]], None] = lambda _: None
) -> dict[str, Any]:
    """Trains from the initial model or the newest checkpoint, and writes the finished T5.

    On several workers each calls this; batches are dealt out among them, and the first one writes. They take no probe: it is
    a training of its own, which the others would be part of.

    Args:
        on_point: called with each logged point: `step`, `loss`, the losses by objective, `tokens`, held-out losses,
            `probe_accuracy`.

    Returns:
        What `summary.json` holds.

    Raises:
        CotdError: the loss is no number any more.
    """
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from cotd.pretraining.model import EncoderTeacher, PretrainingT5, save_as_t5, total_loss

    corpus, tokenizer = Corpus.open(folder.corpus), load_tokenizer(folder)
    train_chunks, held_out_chunks = chunk_split(corpus, config)
    settings, use_gpu = config.training, torch.cuda.is_available()
    model = PretrainingT5.from_pretrained(folder.initial, dtype=torch.float32)
    model.freeze_statistics()
    set_dropout(model, settings.dropout)
    teacher = None
    if config.encoder_teacher and config.objectives.hidden_share:
        teacher = EncoderTeacher(config.encoder_teacher, best_device(), settings.precision)
    precision = choose_dtype(settings.precision, use_gpu)
    optim, optimizer = trainer_optimizer(settings.optimizer, settings.learning_rate, settings.weight_decay)
    arguments = TrainingArguments(
        output_dir=str(folder.checkpoints), max_steps=settings.steps, per_device_train_batch_size=1,
        learning_rate=settings.learning_rate, warmup_steps=min(settings.warmup_steps, settings.steps // 2),
        weight_decay=settings.weight_decay, lr_scheduler_type=settings.schedule, max_grad_norm=settings.max_grad_norm,
        optim=optim,
        save_strategy="steps", save_steps=settings.save_every, save_total_limit=1, logging_steps=settings.log_every,
        seed=settings.seed, report_to="none", disable_tqdm=True, remove_unused_columns=False, use_cpu=not use_gpu,
        bf16=precision == "bfloat16", dataloader_num_workers=loader_workers() if use_gpu else 0, log_level="error",
        logging_nan_inf_filter=False,  # it would wait for the GPU at every step
        average_tokens_across_devices=False,  # workers would exchange counts for batches with labels alone, and wait for others
    )  # fmt: skip
    train_on_one_gpu(arguments)
    arguments.seed += arguments.process_index  # what workers drop out differs
    start = Path(resolve_model(config.start)) if config.start else None
    batches = make_batches(config, corpus, tokenizer, train_chunks, settings.steps * arguments.world_size)
    held_out = make_batches(config, corpus, tokenizer, held_out_chunks, 40, seed_offset=1)
    validation = probe_reviews(config.probe).split("validation") if config.probe.source else None
    probes = config.probe.source is not None and arguments.world_size == 1
    sums: dict[str, Any] = defaultdict(int)
    counts: dict[str, int] = defaultdict(int)

    class PretrainingTrainer(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(batches)  # planned in random order

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            sum_gradients(self.model.parameters(), mean=True)
            return loss

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            with self.accelerator.autocast():
                losses = self.model.losses(inputs, teacher)
            for name, value in losses.items():  # as tensors: a number would have the processor wait for the GPU
                sums[name] = sums[name] + value.detach()
                counts[name] += 1
            sums["tokens"] = sums["tokens"] + inputs["tokens"] * self.args.world_size
            return total_loss(losses, config.objectives)

        def log(self, logs: dict[str, float], *_: Any, **__: Any) -> None:
            # Of all workers, so that all of them stop. Gradients too: of the step that is saved the loss is from before it.
            if not all(math.isfinite(logs.get(name, 0.0)) for name in ("loss", "grad_norm")):
                raise CotdError(diverged(self.state.global_step, folder))
            if "loss" not in logs or not self.is_world_process_zero():
                return
            point: dict[str, float] = {"step": self.state.global_step, "loss": logs["loss"]}
            point |= {name: float(sums[name]) / n for name, n in counts.items()}
            point |= {
                "learning_rate": logs["learning_rate"],
                "tokens": float(sums["tokens"]),
                "seconds": time.perf_counter() - started,
            }
            sums.clear()
            counts.clear()
            write_point(point)

    class Measure(TrainerCallback):
        """Held-out losses and zero-shot accuracy with each checkpoint, and the probe now and then."""

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                write_point({"step": state.global_step} | measure())

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % settings.save_every == 0 or state.global_step == settings.steps:
                control.should_log = True  # before it is saved: a loss that is no number stops it there
            if probes and state.global_step % config.probe.every == 0 and state.global_step < settings.steps:
                write_point({"step": state.global_step} | probe(config.probe, model, tokenizer, folder.path / "probe"))

    def measure() -> dict[str, float]:
        measured = held_out_losses(model, held_out, teacher)
        return measured | (zero_shot(model, tokenizer, validation) if validation is not None else {})

    def write_point(point: dict[str, float]) -> None:
        folder.append(point)
        on_point(point)

    started = time.perf_counter()
    trainer = PretrainingTrainer(
        model=model, args=arguments, train_dataset=batches, data_collator=lambda rows: rows[0], callbacks=[Measure()],
        optimizer_cls_and_kwargs=optimizer,
    )  # fmt: skip
    leave_unwrapped(trainer)
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if settings.steps:
        trainer.train(resume_from_checkpoint=latest_checkpoint(folder.checkpoints))
    if not trainer.is_world_process_zero():
        return {}
    last = {"step": settings.steps} | measure()
    if probes:
        last |= probe(config.probe, model, tokenizer, folder.path / "probe")
    write_point(last)
    points = folder.points()
    before = start / "pretraining.json" if start else None
    summary = {
        "digest": run_digest(config), "steps": settings.steps, "tokens": sum(p.get("tokens", 0) for p in points),
        "seconds": total_seconds(folder), "parameters": plain_parameters(model), "device": device_name(),
        "precision": precision, "shape": {key: getattr(model.config, key) for key in ("num_layers", "num_decoder_layers", "d_model")},
        "vocabulary": len(tokenizer), "corpus": corpus.manifest, "asked": len(batches.asked), "last": points[-1],
        "config": config.model_dump(),
        "start": json.loads(before.read_text(encoding="utf-8")) if before and before.is_file() else None,
    }  # fmt: skip
    scratch = folder.model.with_name("model.part")
    shutil.rmtree(scratch, ignore_errors=True)
    save_as_t5(model, tokenizer, scratch)
    if start and (start / "README.md").is_file():
        shutil.copy(start / "README.md", scratch / "START.md")
    shutil.rmtree(folder.model, ignore_errors=True)
    scratch.rename(folder.model)
    folder.write_summary(summary)
    return summary


def diverged(step: int, folder: RunFolder) -> str:
    """What to do when the loss is no number."""
    kept = latest_checkpoint(folder.checkpoints)
    where = f"{kept} is kept" if kept else "no checkpoint had been saved yet"
    return (
        f"pretraining has diverged: by step {step} the loss is not a number. It has stopped; {where}. Lower "
        "training.learning_rate, raise training.warmup_steps, or set training.precision: float32, and start over with --restart."
    )


def plain_parameters(model: Any) -> int:
    """Parameters of the finished T5: the heads towards the teacher are left behind."""
    left_behind = ("hidden_", "sentence_", "answer_")
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(left_behind))


def total_seconds(folder: RunFolder) -> float:
    """Seconds of training over all attempts: each attempt's clock starts at zero."""
    total = previous = 0.0
    for line in folder.lines():
        seconds = line.get("seconds")
        if seconds is not None:
            total += seconds - previous if seconds >= previous else seconds
            previous = seconds
    return total


def device_name() -> str:
    """The accelerator's name, or the processor's with its number of threads in use."""
    import platform

    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of an {platform.machine()} processor"
