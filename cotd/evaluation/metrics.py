"""A student's metrics against gold labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cotd.data.table import SPLITS
from cotd.errors import CotdError
from cotd.evaluation.statistics import accuracy_metrics, expected_calibration_error
from cotd.students.student import Student
from cotd.tasks.base import Task

ALL = "all"


def require_split(split: str) -> None:
    """Raises a CotdError if there is no such split."""
    if split not in (*SPLITS, ALL):
        raise CotdError(f"--split '{split}' is not {', '.join(SPLITS)} or {ALL}.")


def gold_examples(source: str, task: Task, split: str = "test", text: str = "text", label: str = "label") -> pd.DataFrame:
    """A source's examples with gold labels, of one split or of all, as an example table.

    Raises:
        CotdError: there is no such source, column or split, or no gold label in it.
    """
    from cotd.data.config import Columns, DataConfig
    from cotd.data.sources import load_examples

    require_split(split)
    every = load_examples(DataConfig(source=source, columns=Columns(text=text, label=label)), task)
    examples = every.table if split == ALL else every.split(split)
    examples = examples[examples["label"].notna()]
    if examples.empty:
        where = source if split == ALL else f"the {split} split of {source}"
        raise CotdError(f"there are no gold labels to score against: {where}. Name the label column, or another split.")
    return examples


def predictions_table(student: Student, examples: pd.DataFrame, rationales: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Predictions for labelled examples: columns example_id, gold, predicted, probability_LABEL…, truncated.

    Args:
        rationales: example id → the teacher's own rationale, for a student that reads them.
    """
    predicted = student.predict(list(examples["text"]), align(examples, rationales))
    table = pd.DataFrame({"example_id": examples["id"].to_list(), "gold": examples["label"].to_list()})
    table["predicted"] = [p.label for p in predicted]
    for label in student.task.labels:
        table[f"probability_{label}"] = [p.probabilities[label] for p in predicted]
    table["truncated"] = [p.truncated for p in predicted]
    return table


def align(examples: pd.DataFrame, rationales: Mapping[str, str] | None) -> list[str] | None:
    """The rationale of each example, or None if there are none."""
    return None if rationales is None else [rationales[i] for i in examples["id"]]


def score_predictions(table: pd.DataFrame, task: Task, teacher: dict[str, str] | None = None) -> dict[str, Any]:
    """Metrics of a predictions table with gold labels.

    Args:
        teacher: example id → teacher's label; adds `teacher_agreement` and its `n_teacher`.

    Returns:
        accuracy with ci_low and ci_high (Wilson, 95 %), n, macro_f1, roc_auc (absent with one class),
        expected_calibration_error, and for each label precision_LABEL (absent if it is never predicted) and recall_LABEL
        (absent if no example has it); all in [0, 1] but n.
    """
    from sklearn.metrics import f1_score, roc_auc_score

    gold, predicted = table["gold"].to_numpy(), table["predicted"].to_numpy()
    correct = gold == predicted
    labels = [c.removeprefix("probability_") for c in table if c.startswith("probability_")]
    confidence = table[[f"probability_{label}" for label in labels]].max(axis=1).to_numpy()
    metrics: dict[str, Any] = {
        **accuracy_metrics(correct),
        "macro_f1": float(f1_score(gold, predicted, average="macro")),
        "expected_calibration_error": expected_calibration_error(confidence, correct),
    }  # fmt: skip
    for label in labels:
        for name, among in (("precision", predicted == label), ("recall", gold == label)):
            if among.any():
                metrics[f"{name}_{label}"] = float(correct[among].mean())
    positive = task.positive_label
    if positive and len(set(gold)) > 1:
        metrics["roc_auc"] = float(roc_auc_score(gold == positive, table[f"probability_{positive}"]))
    if teacher:
        shared = table[table["example_id"].isin(list(teacher))]
        if len(shared):
            agreed = shared["predicted"].to_numpy() == np.array([teacher[i] for i in shared["example_id"]])
            metrics |= {"teacher_agreement": float(agreed.mean()), "n_teacher": len(shared)}
    return metrics


def accuracy_table(metrics: Mapping[str, Any]) -> list[str]:
    """The lines of a Markdown table of validation and test accuracy, each with its interval.

    Args:
        metrics: split → the result of `score_predictions`.
    """
    lines = ["| split | accuracy | 95 % interval | examples |", "|---|---|---|---|"]
    for split in ("validation", "test"):
        m = metrics[split]
        lines.append(f"| {split} | {m['accuracy']:.1%} | [{m['ci_low']:.1%}, {m['ci_high']:.1%}] | {m['n']:,} |")
    return lines


def fit_temperature(logits: np.ndarray, gold: np.ndarray) -> float:
    """The temperature that minimises the negative log-likelihood of held-out labels (Guo et al. 2017).

    Args:
        logits: (N, labels). gold: (N,) label indices.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(gold)), gold].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
