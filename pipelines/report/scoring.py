"""Students scored for a report alone: on another source's reviews, and base models as they were before any training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.evaluation.metrics import predictions_table, score_predictions
from cotd.progress import track
from cotd.students.base_models import CARD, model_digest, resolve_model
from cotd.students.student import Student
from cotd.tasks.registry import get_task
from cotd.training.config import TrainingConfig
from cotd.utils.files import read_json
from cotd.utils.parquet import write_parquet
from pipelines.report.results import Results, correctness
from pipelines.sweep.plan import Plan

PART = 512  # reviews between two looks at the progress


def kept_predictions(path: Path, reviews: pd.DataFrame, load: Callable[[], Student], title: str | None = None) -> pd.DataFrame:
    """A student's predictions of reviews with gold labels, from `path` where it holds those of exactly these reviews.

    Args:
        title: of the progress to show; None for none.
    """
    if not is_of(path, reviews.set_index("id")["label"]):
        path.parent.mkdir(parents=True, exist_ok=True)
        student = load()
        parts = []
        with track(title, len(reviews), "reviews") if title else nullcontext(lambda n: None) as advance:
            for start in range(0, len(reviews), PART):
                parts.append(predictions_table(student, reviews.iloc[start : start + PART]))
                advance(len(parts[-1]))
        write_parquet(pd.concat(parts, ignore_index=True), path)
    return pd.read_parquet(path)


def is_of(path: Path, gold: pd.Series) -> bool:
    """Whether the file holds predictions of exactly these reviews."""
    try:
        correctness(path, gold)
    except (OSError, ValueError, KeyError):
        return False
    return True


def base_scores(plan: Plan, results: Results, reviews: pd.DataFrame, folder: Path) -> list[dict[str, Any]]:
    """What the base models of the finished trials score before any training, where pretraining taught them the labels.

    What a student is worth beyond its base is what its training gave. A base that has no student's card says nothing yet.

    Args:
        reviews: those of `results`, with gold labels, as a Review table.
        folder: where predictions are kept.

    Returns:
        `size`, `model`, `accuracy`, `ci_low`, `ci_high` and `n` of each such size.
    """
    found = []
    for size, model in {t["size"]: t["model"] for t in results.trials}.items():
        card = Path(resolve_model(model)) / CARD
        task = plan.config.data.task
        if not card.is_file() or read_json(card)["task"]["name"] != task:
            continue
        settings = read_alike([t.training for t in plan.trials if t.size == size]) or plan.config.training
        read = str(settings.max_input_tokens) + ("" if settings.truncation == "head" else f"-{settings.truncation}")
        path = folder / f"base-{model_digest(model)}-{read}.parquet"
        table = kept_predictions(path, reviews, partial(base_student, model, settings), f"scoring {model} as it is")
        scores = score_predictions(table, get_task(task).positive)
        found.append({"size": size, "model": model, **{k: scores[k] for k in ("accuracy", "ci_low", "ci_high", "n")}})
    return found


def read_alike(trained: list[TrainingConfig]) -> TrainingConfig | None:
    """One of these settings, if by all of them the same of a review is read."""
    return trained[0] if len({(t.max_input_tokens, t.truncation) for t in trained}) == 1 else None


def base_student(model: str, settings: TrainingConfig) -> Student:
    """A base that is a student already, reading of a review what the study's own do."""
    student = Student.load(model)
    student.max_input_tokens, student.truncation = settings.max_input_tokens, settings.truncation
    return student
