"""Students scored for a report alone: on another source's examples, and base models as they are before training."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cotd.data.cleaning import clean_text
from cotd.evaluation.metrics import predictions_table, score_predictions
from cotd.evaluation.seen import was_seen
from cotd.evaluation.statistics import group_codes
from cotd.progress import track
from cotd.storage.working_copy import copy_of
from cotd.students.base_models import CARD, model_digest, resolve_model
from cotd.students.student import Student
from cotd.study.config import StudyConfig
from cotd.training.config import TrainingConfig
from cotd.training.methods import METHODS
from cotd.utils.files import read_json
from cotd.utils.parquet import write_parquet
from pipelines.report.results import Results, correctness, stack
from pipelines.sweep.plan import Plan

BATCH = 512  # examples between two steps of the progress bar


@dataclass(frozen=True)
class OtherSource:
    """Examples of another source, with gold labels, to score a study's students on."""

    name: str
    examples: pd.DataFrame


def transfer_folder(config: StudyConfig, source: str) -> Path:
    """Where the report on another source's examples is written, in the study's folder."""
    return config.directory / "transfer" / re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-.")


def unseen_examples(plan: Plan, examples: pd.DataFrame) -> pd.DataFrame:
    """The examples without those that the study trains or selects on, by their normalised text, or that its base models saw."""
    study = pd.read_parquet(plan.examples, columns=["text", "split"])
    texts = {clean_text(text).casefold() for text in study[study["split"] != "test"]["text"]}
    seen = np.array([clean_text(text).casefold() in texts for text in examples["text"]], dtype=bool)
    for model in {t.model for t in plan.trials}:
        by_base = was_seen(model, examples)
        seen |= False if by_base is None else by_base
    return examples[~seen].reset_index(drop=True)


def transfer_results(plan: Plan, results: Results, examples: pd.DataFrame, folder: Path) -> Results:
    """The results with each student scored on other examples in place of the study's own, which have no teacher.

    Predictions are kept in `folder`, a file a trial: what was scored is not scored again.

    Args:
        examples: those of the other source, with gold labels, as an example table.
    """
    gold = examples.set_index("id")["label"]
    readers = [t["method"] for t in results.trials if METHODS[t["method"]].rationale_as_input]
    trials = [t for t in results.trials if t["method"] not in readers]
    entries, rows = [], []
    with track(f"scoring {len(trials)} students on other examples", len(trials), "students") as advance:
        for trial in trials:
            path = folder / "predictions" / f"{trial['trial_id']}.parquet"
            table = kept_predictions(path, examples, partial(load_student, plan, trial["trial_id"]))
            scores = score_predictions(table, plan.config.task)
            metrics = {key: scores.get(key) for key in ("accuracy", "ci_low", "ci_high", "macro_f1", "answered")}
            entries.append({**trial, **metrics, "n_test": scores["n"], "teacher_agreement": None})
            rows.append(correctness(path, gold))
            advance(1)
    notes = [*results.notes]
    if readers:
        methods = ", ".join(dict.fromkeys(readers))
        notes.append(
            f"Students of {methods} are left out: they read the teacher's rationales, which these examples do not have."
        )
    groups = group_codes(examples.get("group"))
    return replace(
        results, gold=gold, trials=entries, correct=stack(rows, gold), teacher_correct=None, notes=notes, groups=groups
    )


def base_scores(plan: Plan, results: Results, examples: pd.DataFrame, folder: Path) -> list[dict[str, Any]]:
    """What the base models of the finished trials score before training, if their pretraining taught the labels.

    The difference from its base is what a student's training gave. A base without a student's card cannot label yet.

    Args:
        examples: those of `results`, with gold labels, as an example table.
        folder: where predictions are kept.

    Returns:
        `size`, `model`, `accuracy`, `ci_low`, `ci_high` and `n` of each such size.
    """
    task = plan.config.task
    bases = []
    for size, model in {t["size"]: t["model"] for t in results.trials}.items():
        card = Path(resolve_model(model)) / CARD
        if not card.is_file() or (read_json(card)["task"]["name"], read_json(card)["task"]["labels"]) != (
            task.name,
            list(task.labels),
        ):
            continue
        training = [t.training for t in plan.trials if t.size == size]
        same_input = len({(t.max_input_tokens, t.truncation) for t in training}) == 1
        settings = training[0] if same_input else plan.config.training
        suffix = "" if settings.truncation == "head" else f"-{settings.truncation}"
        path = folder / f"base-{model_digest(model)}-{settings.max_input_tokens}{suffix}.parquet"
        table = kept_predictions(path, examples, partial(load_base, model, settings), f"scoring {model} before training")
        scores = score_predictions(table, task)
        bases.append({"size": size, "model": model, **{k: scores[k] for k in ("accuracy", "ci_low", "ci_high", "n")}})
    return bases


def kept_predictions(path: Path, examples: pd.DataFrame, load: Callable[[], Student], title: str | None = None) -> pd.DataFrame:
    """A student's predictions of examples with gold labels, from `path` if it holds those of exactly these examples.

    Args:
        title: of a progress bar; None for none.
    """
    try:
        correctness(path, examples.set_index("id")["label"])
    except (OSError, ValueError, KeyError):
        path.parent.mkdir(parents=True, exist_ok=True)
        student = load()
        parts = []
        with track(title, len(examples), "examples") if title else nullcontext(lambda n: None) as advance:
            for start in range(0, len(examples), BATCH):
                parts.append(predictions_table(student, examples.iloc[start : start + BATCH]))
                advance(len(parts[-1]))
        write_parquet(pd.concat(parts, ignore_index=True), path)
    return pd.read_parquet(path)


def load_student(plan: Plan, trial_id: str) -> Student:
    """A finished trial's student, fetched if the study's storage is remote."""
    folder = plan.folder_of(trial_id)
    if plan.config.remote and not folder.student.is_dir():
        copy_of(plan.config.remote, plan.config.directory).pull(f"trials/{trial_id}/student")
    return Student.load(folder.student)


def load_base(model: str, settings: TrainingConfig) -> Student:
    """A base model that is a student already, cutting its inputs as the study's students do."""
    student = Student.load(model)
    student.max_input_tokens, student.truncation = settings.max_input_tokens, settings.truncation
    return student
