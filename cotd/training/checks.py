"""What can be wrong with a trial, before and while it trains, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.training.trial import Trial
from cotd.utils.text import format_percent


def require_both_labels(trial: Trial, task: Task, reviews: int, words: Sequence[str], validation: pd.DataFrame) -> None:
    """Raises a CotdError if a student would learn a single label, or be selected by one: it would always answer with it.

    Args:
        reviews: how many it would train on. words: the distinct label words among their targets.
    """
    problems = []
    if len(words) < 2:
        problems.append(
            f"all {reviews} reviews that '{trial.method}' would train on ({format_percent(trial.fraction)} of the "
            f"split) have the label '{words[0]}'. Raise grid.fraction or data.train_rows, or check data.columns.label."
        )
    if validation["label"].nunique() < 2:
        problems.append(
            f"the validation split has {len(validation)} gold labels, not of both kinds ({', '.join(task.labels)}), so that no "
            "student can be selected by it. Raise data.validation_rows, or check data.columns.label."
        )
    if problems:
        raise CotdError(*problems)


def require_rationales(method: str, splits: dict[str, pd.DataFrame], rationales: dict[str, str] | None) -> None:
    """Raises a CotdError if the teacher was not asked about every validation and test review."""
    missing = {split: int((~reviews["id"].isin(list(rationales or {}))).sum()) for split, reviews in splits.items()}
    if any(missing.values()):
        counts = " and ".join(f"{n} of {len(splits[split])} {split} reviews" for split, n in missing.items() if n)
        raise CotdError(
            f"method '{method}' reads the teacher's own rationale beside each review, and there is none for {counts}. "
            "Set teacher.held_out_rationales: true and run `cotd annotate CONFIG` again; what is known is not asked again."
        )


def out_of_memory(trial: Trial, step: int, error: Exception) -> str:
    """What to lower when a GPU's memory is exhausted."""
    settings = trial.training
    return (
        f"the GPU ran out of memory at step {step} ({str(error).split('. ')[0]}). Set training.micro_batch_size lower (now "
        f"{settings.micro_batch_size or settings.batch_size}) or training.gradient_checkpointing to true: a step then takes "
        f"longer and trains the same. Or lower training.max_input_tokens ({settings.max_input_tokens}) or training.max_target_tokens "
        f"({settings.max_target_tokens}), or let fewer trials share a GPU (resources.gpus). The last checkpoint is kept."
    )


def disk_is_full(path: Path) -> str:
    """What to do when nothing more can be written."""
    return (
        f"no space is left where {path} lies. Free some, or name another place: storage=FOLDER; then run the same command "
        "again: finished trials are kept, and this one goes on from its last complete checkpoint."
    )


def not_a_number(step: int, what: str, review_ids: Sequence[str]) -> str:
    """What to do when training has diverged."""
    seen = f" on the reviews {', '.join(review_ids)}" if review_ids else ""
    return (
        f"{what} is not a number at step {step}{seen}. Training has stopped, and the last good checkpoint is kept. Lower "
        "training.learning_rate, raise training.warmup_steps, or set training.precision: float32."
    )
