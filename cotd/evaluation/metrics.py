"""A student's metrics against gold labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cotd.evaluation.statistics import accuracy_metrics, expected_calibration_error, group_codes
from cotd.students.student import Prediction, Student
from cotd.tasks.base import Task


def predictions_table(student: Student, examples: pd.DataFrame, rationales: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A student's predictions of labelled examples, see `tabulate`.

    Args:
        rationales: example id → the teacher's own rationale, for a student that reads them.
    """
    predicted = student.predict(list(examples["text"]), align(examples, rationales), own_choices(examples))
    return tabulate(predicted, examples, student.task)


def tabulate(predicted: Sequence[Prediction], examples: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The prediction of each labelled example as a table.

    Returns:
        Columns example_id, gold, predicted (null where the student gave no answer), score (null for free answers),
        probability_LABEL for each label of a fixed set, truncated; group, if the examples have groups.
    """
    table = pd.DataFrame({"example_id": examples["id"].to_list(), "gold": examples["label"].to_list()})
    table["predicted"] = pd.Series([p.label for p in predicted], dtype=object)
    table["score"] = pd.Series([p.score for p in predicted], dtype=float)
    for label in task.labels:
        table[f"probability_{label}"] = [p.probabilities[label] for p in predicted if p.probabilities]
    table["truncated"] = [p.truncated for p in predicted]
    if "group" in examples:
        table["group"] = examples["group"].to_list()
    return table


def own_choices(examples: pd.DataFrame) -> list[list[str]] | None:
    """The options of each example, or None if they have none of their own."""
    return [list(c) for c in examples["choices"]] if "choices" in examples else None


def align(examples: pd.DataFrame, rationales: Mapping[str, str] | None) -> list[str] | None:
    """The rationale of each example, or None if there are none."""
    return None if rationales is None else [rationales[i] for i in examples["id"]]


def score_predictions(table: pd.DataFrame, task: Task, teacher: dict[str, str] | None = None) -> dict[str, Any]:
    """Metrics of a predictions table with gold labels.

    Args:
        table: see `tabulate`.
        teacher: example id → teacher's label; adds `teacher_agreement` and its `n_teacher`.

    Returns:
        accuracy with ci_low and ci_high (see `accuracy_interval`), n, and n_groups if examples have groups. For a fixed set of
        labels: macro_f1, roc_auc (of two labels that of the positive one, of more the mean of each against the rest; absent
        with one class), and for each label precision_LABEL (absent if it is never predicted) and recall_LABEL (absent if no
        example has it). Where answers are chosen: expected_calibration_error; where they are free: answered, the fraction of
        examples with an answer. All but n and n_groups are in [0, 1].
    """
    from sklearn.metrics import f1_score

    gold, predicted = (table[c].astype(object).where(table[c].notna(), None).to_numpy() for c in ("gold", "predicted"))
    correct = gold == predicted
    metrics: dict[str, Any] = accuracy_metrics(correct, group_codes(table.get("group")))
    if task.free_answers:
        metrics["answered"] = float(table["predicted"].notna().mean())
    else:
        metrics["expected_calibration_error"] = expected_calibration_error(table["score"].to_numpy(), correct)
    if task.labels:
        metrics["macro_f1"] = float(f1_score(list(gold), list(predicted), average="macro"))
        if (area := roc_auc(table, task)) is not None:
            metrics["roc_auc"] = area
    for label in task.labels:
        for name, among in (("precision", predicted == label), ("recall", gold == label)):
            if among.any():
                metrics[f"{name}_{label}"] = float(correct[among].mean())
    if teacher:
        shared = table["example_id"].isin(list(teacher)).to_numpy()
        if shared.any():
            agreed = predicted[shared] == np.array([teacher[i] for i in table["example_id"][shared]], dtype=object)
            metrics |= {"teacher_agreement": float(agreed.mean()), "n_teacher": int(shared.sum())}
    return metrics


def roc_auc(table: pd.DataFrame, task: Task) -> float | None:
    """The area under the ROC curve of a predictions table's probabilities, see `score_predictions`; None with one class."""
    from sklearn.metrics import roc_auc_score

    ranked = [task.positive_label] if task.positive_label else [label for label in task.labels if label in set(table["gold"])]
    if table["gold"].nunique() < 2:
        return None
    return float(np.mean([roc_auc_score(table["gold"] == label, table[f"probability_{label}"]) for label in ranked]))


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
        logits: (N, options), -inf beyond an example's own options. gold: (N,) positions of the right ones.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(gold)), gold].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
