"""What the best student does with each label of a fixed set: how often it is right, and what it takes it for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cotd.evaluation.statistics import expected_calibration_error
from cotd.tasks.base import Task
from pipelines.report.results import Group, Results, need_no_teacher


def best_group(groups: list[Group]) -> Group | None:
    """The students that a report speaks of first: the best by validation, of those that need no teacher at inference."""
    return max(
        need_no_teacher(groups),
        key=lambda g: (g["validation_accuracy"], g["validation_roc_auc"] or 0, -g["fraction"]),
        default=None,
    )


def label_scores(
    results: Results, groups: list[Group], task: Task, predictions: Callable[[str], Path]
) -> dict[str, Any] | None:
    """The best students' predictions by label, as `report.json` has them.

    Args:
        predictions: trial id → the trial's predictions table.

    Returns:
        `group` (its position), `labels`, `confusion` (for each gold label the predictions of each, summed over seeds), `rows` (for
        each label: `label`, `examples`, `recall`, `predicted`, `precision` and `confidence`, the mean score of those predictions;
        the last three None if it is never predicted), `calibration_error` and `temperature` (of each seed). None if there is no
        student, or no fixed set of labels.
    """
    best = best_group(groups)
    if best is None or not task.labels:
        return None
    trials = [results.trials[i] for i in best["trials"]]
    tables = [pd.read_parquet(predictions(t["trial_id"])) for t in trials]
    table = pd.concat(tables, ignore_index=True)
    table = table[table["gold"].isin(task.labels)]
    codes = {label: i for i, label in enumerate(task.labels)}
    confusion = np.zeros((len(codes), len(codes)), dtype=int)
    np.add.at(confusion, (table["gold"].map(codes).to_numpy(), table["predicted"].map(codes).to_numpy()), 1)
    rows = []
    for label, i in codes.items():
        examples, predicted, right = int(confusion[i].sum()), int(confusion[:, i].sum()), int(confusion[i, i])
        confidence = table.loc[table["predicted"] == label, "score"].mean() if "score" in table else None
        rows.append(
            {
                "label": label, "examples": examples // len(tables), "recall": right / examples if examples else None,
                "predicted": predicted / len(tables), "precision": right / predicted if predicted else None,
                "confidence": float(confidence) if predicted and confidence is not None else None,
            }
        )  # fmt: skip
    errors = [
        expected_calibration_error(t["score"].to_numpy(), (t["gold"] == t["predicted"]).to_numpy())
        for t in tables
        if "score" in t
    ]
    return {
        "group": groups.index(best), "labels": list(task.labels), "confusion": confusion.tolist(), "rows": rows,
        "calibration_error": errors, "temperature": [t["temperature"] for t in trials],
    }  # fmt: skip
