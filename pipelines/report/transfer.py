"""A study's students on the test reviews of another source: what they have learned beyond their own."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from cotd.data.cleaning import clean_text
from cotd.evaluation.metrics import score_predictions
from cotd.progress import track
from cotd.storage.working_copy import copy_of
from cotd.students.student import Student
from cotd.study.config import StudyConfig
from cotd.tasks.registry import get_task
from cotd.training.folder import TrialFolder
from cotd.training.methods import METHODS
from pipelines.report.results import Results, correctness
from pipelines.report.scoring import kept_predictions
from pipelines.sweep.plan import Plan


def transfer_folder(config: StudyConfig, source: str) -> Path:
    """Where the report on another source's reviews lies, in the study's folder."""
    return config.directory / "transfer" / re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-.")


def unseen_reviews(plan: Plan, reviews: pd.DataFrame) -> pd.DataFrame:
    """The reviews without those that the study trains or selects on, by their normalised text."""
    own = pd.read_parquet(plan.reviews, columns=["text", "split"])
    seen = {clean_text(text).casefold() for text in own[own["split"] != "test"]["text"]}
    return reviews[[clean_text(text).casefold() not in seen for text in reviews["text"]]].reset_index(drop=True)


def transferred(plan: Plan, results: Results, reviews: pd.DataFrame, folder: Path) -> Results:
    """The results with each student scored on other reviews in place of the study's own; there is no teacher of them.

    Predictions are kept in `folder`, a file a trial: what was scored is not scored again.

    Args:
        reviews: those of the other source, with gold labels, as a Review table.
    """
    gold = reviews.set_index("id")["label"]
    positive = get_task(plan.config.data.task).positive
    readers = [t for t in results.trials if METHODS[t["method"]].rationale_as_input]
    trials = [t for t in results.trials if t not in readers]
    entries, rows = [], []
    with track(f"scoring {len(trials)} students elsewhere", len(trials), "students") as advance:
        for trial in trials:
            path = folder / "predictions" / f"{trial['trial_id']}.parquet"
            table = kept_predictions(path, reviews, partial(student_of, plan, trial["trial_id"]))
            scores = score_predictions(table, positive)
            kept = {key: scores[key] for key in ("accuracy", "ci_low", "ci_high", "macro_f1")}
            entries.append({**trial, **kept, "n_test": scores["n"], "teacher_agreement": None})
            rows.append(correctness(path, gold))
            advance(1)
    notes = [*results.notes]
    if readers:
        left_out = ", ".join(dict.fromkeys(t["method"] for t in readers))
        notes.append(
            f"Students of {left_out} read the teacher's rationales, of which these reviews have none: they are left out."
        )
    correct = np.stack(rows) if rows else np.empty((0, len(gold)), dtype=bool)
    return replace(results, gold=gold, trials=entries, correct=correct, teacher_correct=None, notes=notes)


def student_of(plan: Plan, trial_id: str) -> Student:
    """A finished trial's student, fetched where the study's storage is elsewhere."""
    folder: TrialFolder = plan.folder_of(trial_id)
    if plan.config.remote and not folder.student.is_dir():
        copy_of(plan.config.remote, plan.config.directory).pull(f"trials/{trial_id}/student")
    return Student.load(folder.student)
