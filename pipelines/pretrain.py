"""`cotd pretrain`: a recipe's corpus, first model, training and card, on this machine or on Ray Train's workers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from cotd.errors import CotdError
from cotd.pretraining.answers import AnswerBlocks, AnswerTeacher
from cotd.pretraining.card import write_card
from cotd.pretraining.config import PretrainConfig
from cotd.pretraining.corpus import Corpus, prepare
from cotd.pretraining.probes import probe_model, probe_reviews
from cotd.pretraining.rationales import read_rationales
from cotd.pretraining.run_folder import RunFolder
from cotd.pretraining.training import make_initial, run_digest, train
from cotd.progress import say, track
from cotd.tracking import PretrainingTracker
from pipelines.cluster import has_gpus, ray_session
from pipelines.locking import only_one
from pipelines.workers import first_cause


def pretrain(config: PretrainConfig, restart: bool = False) -> dict[str, Any]:
    """Makes a T5 from text; what is done already is not done again, and a stopped run goes on from its checkpoint.

    Args:
        restart: throw away the folder of another recipe of this name instead of refusing to.

    Returns:
        What `summary.json` holds.

    Raises:
        CotdError: a source or a teacher does not exist, or the folder holds a run of another recipe.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading weights; the stages show their own
    check_teachers(config)
    with only_one(config.directory, f"pretraining {config.name}", "the other goes on from the newest checkpoint."):
        return pretrain_alone(config, restart)


def pretrain_alone(config: PretrainConfig, restart: bool) -> dict[str, Any]:
    """`pretrain`, when no other process works in the run's folder."""
    folder = RunFolder(config.directory)
    folder.claim(run_digest(config), restart)
    card = folder.model / "README.md"
    if folder.summary.is_file() and card.is_file():
        say(f"done before: {folder.model}")
        return folder.read_summary()
    tracker = PretrainingTracker(config, run_digest(config))
    status = "KILLED"
    try:
        if not folder.summary.is_file():
            train_model(config, folder, tracker)
        elif not folder.model.is_dir():
            raise CotdError(
                f"{folder.path} says that it is done, and {folder.model} is gone. Put it back, or delete the former."
            )
        if config.training.workers > 1:
            if config.probe.source and "probe_accuracy" not in folder.read_summary()["last"]:
                probe_finished(config, folder)
            for point in folder.points():
                tracker.log(point)
        summary = folder.read_summary()
        write_card(folder, summary)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        tracker.finish(summary, card)
        status = "FINISHED"
    finally:
        tracker.end(status)
    return summary


def train_model(config: PretrainConfig, folder: RunFolder, tracker: PretrainingTracker) -> None:
    """All up to the finished model and its summary, as far as it is not done."""
    corpus = prepare(config, say)
    if config.asks_answers:
        ask_answer_teacher(config, corpus)
    if not folder.initial.is_dir():
        say("first model: embeddings and statistics of the teachers' states")
        make_initial(config, corpus, folder)
    seen = last_step(folder)
    with track(f"pretraining {config.name}", config.training.steps, "steps") as advance:
        advance(seen)

        def on_point(point: dict[str, float]) -> None:
            nonlocal seen
            advance(max(0, int(point["step"]) - seen))
            seen = max(seen, int(point["step"]))
            tracker.log(point)

        run_workers(config, folder) if config.training.workers > 1 else train(config, folder, on_point)


def probe_finished(config: PretrainConfig, folder: RunFolder) -> None:
    """The last probe of a model that several workers have trained, in this process: to them it would be a training of theirs."""
    scratch = folder.path / "probe"
    shutil.rmtree(scratch, ignore_errors=True)
    last = {"step": config.training.steps} | probe_model(config.probe, folder.model, scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    folder.append(last)
    folder.write_summary(folder.read_summary() | {"last": folder.points()[-1]})


def check_teachers(config: PretrainConfig) -> None:
    """Raises CotdError, naming all, where a teacher that the recipe needs, or what one wrote, is not there."""
    from cotd.student import resolve_model

    wanted = [t.model for t in (config.encoder_teacher, config.answer_teacher) if t]
    if config.start:
        wanted.append(config.start)
    elif config.embeddings == "language_teacher":
        wanted.append(config.language_teacher)
    problems: list[str] = []
    for source in dict.fromkeys(wanted):
        try:
            resolve_model(source)
        except CotdError as error:
            problems.extend(error.problems)
    if not problems:
        problems = layer_problems(config)
    for corpus_source in config.corpus.sources:
        try:
            if corpus_source.rationales:
                read_rationales(corpus_source)
        except CotdError as error:
            problems.extend(error.problems)
    try:
        if config.probe.source:
            probe_reviews(config.probe)
    except CotdError as error:
        problems.extend(f"probe.source: {problem}" for problem in error.problems)
    if problems:
        raise CotdError(*problems)


def layer_problems(config: PretrainConfig) -> list[str]:
    """What is wrong with the layers that are to be learned from."""
    from transformers import AutoConfig

    from cotd.student import resolve_model

    def layers_of(model: str) -> int:
        return int(AutoConfig.from_pretrained(resolve_model(model)).get_text_config().num_hidden_layers)

    problems = []
    if teacher := config.encoder_teacher:
        layers = layers_of(teacher.model)
        if teacher.layer > layers:
            problems.append(
                f"encoder_teacher.layer is {teacher.layer}, and {teacher.model} has {layers}; name one of 0 to {layers}."
            )
    if asked := config.answer_teacher:
        layers = layers_of(asked.model)
        if asked.layer >= layers:  # the last one's state is normalised where the model answers, and is not where it is cut off
            problems.append(
                f"answer_teacher.layer is {asked.layer}, and {asked.model} has {layers}; name one of 1 to {layers - 1}: the "
                "last one's state only says which word comes next."
            )
    return problems


class BlockAnswerer(AnswerTeacher):
    """An answer teacher in a Ray actor, which says which block its answer is of: they come in any order."""

    def ask_block(self, block: int, texts: list[tuple[str, str]], in_full: bool) -> tuple[int, dict[str, Any]]:
        return block, self.ask(texts, in_full)


def ask_answer_teacher(config: PretrainConfig, corpus: Corpus) -> None:
    """Asks the answer teacher, block by block, on every GPU, or every processor core, that Ray has."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(corpus.folder / "tokenizer", local_files_only=True)
    blocks = AnswerBlocks(config, corpus, tokenizer)
    missing = blocks.missing()
    if missing:
        ask_blocks(blocks, missing)
    blocks.write_targets()


def ask_blocks(blocks: AnswerBlocks, missing: list[int]) -> None:
    """Has the blocks of these numbers written."""
    import ray
    from ray.util import ActorPool

    with ray_session():
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = min(len(missing), gpus or int(ray.cluster_resources()["CPU"]))
        resources = {"num_cpus": 1, "num_gpus": 1 if gpus else 0}
        # One thread each: two threads that wait for each other stall when anything else runs.
        remote = ray.remote(**resources)(BlockAnswerer)
        actors = [remote.remote(blocks.teacher, set(blocks.nouns), threads=1) for _ in range(count)]
        with track("asking the answer teacher", len(blocks.asked), "texts") as advance:
            advance(len(blocks.asked) - sum(len(blocks.texts(n)) for n in missing))
            jobs = ((block, blocks.texts(block), blocks.in_full(block)) for block in missing)
            for block, answer in ActorPool(actors).map_unordered(lambda actor, job: actor.ask_block.remote(*job), jobs):
                blocks.write(block, answer)
                advance(len(answer["states"]))


def last_step(folder: RunFolder) -> int:
    """The step of the checkpoint that training goes on from; 0 where there is none."""
    from cotd.training import latest_checkpoint

    found = latest_checkpoint(folder.checkpoints)
    return int(found.rsplit("-", 1)[1]) if found else 0


def run_workers(config: PretrainConfig, folder: RunFolder) -> None:
    """Trains data-parallel on Ray Train: one worker a GPU where there are any, else one a processor core.

    The run's folder, and whatever the recipe names by a relative path, must be on storage that every worker sees.

    Raises:
        CotdError: the cluster has fewer GPUs, or processors, than workers are asked for; or a worker failed.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    here = os.getcwd()

    def work(plain: dict[str, Any]) -> None:
        import torch

        if Path(here).is_dir():
            os.chdir(here)  # Ray Train has given each worker a directory of its own, where relative paths lead nowhere
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        worker_config = PretrainConfig.model_validate(plain)
        train(worker_config, RunFolder(worker_config.directory))

    with ray_session():
        device, needed = "GPU" if has_gpus() else "CPU", config.training.workers
        there = int(ray.cluster_resources().get(device, 0))
        if needed > there:
            raise CotdError(
                f"training.workers is {needed}, and Ray has {there} {device}s, one for each. Set it to at most {there}."
            )
        trainer = TorchTrainer(
            work,
            train_loop_config=config.model_dump() | {"storage": str(folder.path.parent)},
            scaling_config=ScalingConfig(num_workers=config.training.workers, use_gpu=has_gpus()),
            run_config=RunConfig(name="ray", storage_path=str(folder.path)),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            raise CotdError(first_cause(error.worker_failures)[1]) from error
    shutil.rmtree(folder.path / "ray", ignore_errors=True)
