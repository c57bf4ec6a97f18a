"""A summary of annotations as MLflow shows it: metrics by name, and the reliability diagram."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# At most as many reasons become metrics of their own: a text may put anything into an error.
MOST_REASONS = 20
LABEL_METRICS = ("kappa", "kappa_low", "kappa_high", "roc_auc", "calibration_error")


def annotation_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """Metric name → value; what was not measured is left out."""
    teacher, annotations, examples = summary["teacher"], summary["annotations"], summary["examples"]
    labels, rationales = summary["quality"]["labels"], summary["quality"]["rationales"]
    values = {f"teacher_{k}": teacher[k] for k in ("accuracy", "ci_low", "ci_high", "n", "accuracy_on_train")}
    values |= {f"teacher_{k}": labels[k] for k in LABEL_METRICS if k in labels}
    values |= {f"rationales_{k}": rationales[k] for k in ("names_its_label", "near_duplicates") if k in rationales}
    values |= {f"rationales_words_{k}": words for k, words in rationales.get("words", {}).items()}
    values |= {f"annotations_{k}": annotations[k] for k in ("rows", "examples", "usable")}
    values |= {f"imported_{k}": v for k, v in summary.get("imported", {}).items() if isinstance(v, int)}
    values["annotations_quarantined"] = sum(annotations["quarantined"].values())
    values |= {f"examples_{k}": examples[k] for k in ("quarantined", "cut")}
    for reason, count in list(annotations["quarantined"].items())[:MOST_REASONS]:
        values["quarantined/" + re.sub(r"[^\w.-]+", " ", reason)[:100].strip()] = count
    values["annotation_cost_last_run"] = summary["spent"]["cost"] or None
    return {k: float(v) for k, v in values.items() if v is not None}


def reliability_figure(points: list[dict[str, Any]], calibration_error: float) -> Figure:
    """Accuracy against confidence, a dot for each tenth, larger for more rows; a calibrated teacher is on the diagonal.

    Args:
        points: see `cotd.teachers.quality.calibration_quality`.
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.2), layout="tight")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], linestyle=":", color="#888888")
    confidence, accuracy, rows = (np.array([p[k] for p in points]) for k in ("confidence", "accuracy", "rows"))
    axes.scatter(confidence, accuracy, s=20 + 200 * rows / rows.sum(), color="#0072B2")
    title = f"{rows.sum():,} labels, calibration error {calibration_error:.3f}"
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    return figure
