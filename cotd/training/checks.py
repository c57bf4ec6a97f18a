"""What can be wrong with a trial, before and while it trains, and what to do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from cotd.errors import CotdError, full_disk
from cotd.tasks.base import Task
from cotd.training.trial import Trial
from cotd.utils.text import format_percent


def require_both_labels(trial: Trial, task: Task, examples: int, verbalizers: Sequence[str], validation: pd.DataFrame) -> None:
    """Raises a CotdError if a student would learn a single label, or be selected by one: it would always predict it.

    Answers that differ by example, or are free, may all be the same word.

    Args:
        examples: how many it would train on.
        verbalizers: the distinct verbalizers among their targets.
    """
    problems = []
    if not task.labels:
        return
    if len(verbalizers) < 2:
        problems.append(
            f"all {examples} examples that '{trial.method}' would train on ({format_percent(trial.fraction)} of the "
            f"split) have the label '{verbalizers[0]}'. Raise grid.fraction or data.train_rows, or check data.columns.label."
        )
    if validation["label"].nunique() < 2:
        problems.append(
            f"the {len(validation)} gold labels of the validation split are not of two kinds or more ({task.expected()}), so "
            "that no student can be selected by them. Raise data.validation_rows, or check data.columns.label."
        )
    if problems:
        raise CotdError(*problems)


def require_rationales(method: str, splits: Mapping[str, pd.DataFrame], rationales: Mapping[str, str] | None) -> None:
    """Raises a CotdError if the teacher was not asked about every validation and test example."""
    missing = {split: int((~examples["id"].isin(list(rationales or {}))).sum()) for split, examples in splits.items()}
    if any(missing.values()):
        counts = " and ".join(f"{n} of {len(splits[split])} {split} examples" for split, n in missing.items() if n)
        raise CotdError(
            f"method '{method}' reads the teacher's own rationale with each example, and there is none for {counts}. "
            "Set teacher.held_out_rationales: true and run `cotd annotate CONFIG` again; what is known is not asked again."
        )


@contextlib.contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turns any library's error about a full disk into one CotdError, which names the folder."""
    try:
        yield
    except Exception as error:
        if not full_disk(error, folder):
            raise
        raise CotdError(
            f"no space is left on the disk: {folder}. Free some, or set another place, storage=FOLDER; then run the same command "
            "again: finished trials are kept, and this one continues from its last complete checkpoint."
        ) from error


def out_of_memory(trial: Trial, step: int, error: Exception) -> str:
    """What to lower if a GPU's memory is exhausted."""
    settings = trial.training
    return (
        f"the GPU ran out of memory at step {step} ({str(error).split('. ')[0]}). Set training.micro_batch_size lower (now "
        f"{settings.micro_batch_size or settings.batch_size}) or training.gradient_checkpointing to true: a step then takes "
        f"longer and trains the same. Or lower training.max_input_tokens ({settings.max_input_tokens}) or training.max_target_tokens "
        f"({settings.max_target_tokens}), or let fewer trials share a GPU (resources.gpus). The last checkpoint is kept."
    )


def not_a_number(step: int, what: str, example_ids: Sequence[str]) -> str:
    """What to do if training has diverged."""
    where = f" on the examples {', '.join(example_ids)}" if example_ids else ""
    return (
        f"{what} is not a number at step {step}{where}. Training has stopped, and the last good checkpoint is kept. Lower "
        "training.learning_rate, raise training.warmup_steps, or set training.precision: float32."
    )
