"""Several studies beside one another: what rationales changed in each, from the studies' reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec

from cotd.errors import CotdError
from cotd.methods import METHODS
from cotd.published import CLAIMS
from cotd.statistics import share
from pipelines.report.claims import arm, setting_of
from pipelines.report.figures import LABELS, Figure, draw_differences, rendered
from pipelines.report.findings import Content, percent
from pipelines.report.text import comparison_cells, table

FIGURE, TEXT = "comparison.png", "comparison.md"
HEADER = [
    "study", "verdict", "size", "data", "setting", "reviews", "without", "with", "difference, points", "p (Holm)", "p",
    "detectable",
]  # fmt: skip
# What rationales are added to: (with, without), by whose labels both learn from.
ADDED = {METHODS[c.worse].labels: (c.better, c.worse) for c in CLAIMS if not c.less_data and not METHODS[c.worse].rationale}


def compare_studies(folders: Sequence[str], output: Path) -> str:
    """Writes `comparison.png` and `comparison.md`: each study's difference between a method and the same with rationales.

    Nothing is pooled: studies may share students and reviews. Tests are corrected within each study, as in its report.

    Args:
        folders: those that hold the studies' `report.json`, in the order of the rows; of any fsspec path.

    Returns:
        The table, as Markdown.

    Raises:
        CotdError: a folder holds no report, or none that compares a method with and without rationales.
    """
    reports = read_reports(folders)
    rows = {labels: differences(reports, *methods) for labels, methods in ADDED.items()}
    rows = {labels: found for labels, found in rows.items() if found}
    lines = ["# What rationales changed", "", f"![Differences in accuracy with 95 % intervals, by study]({FIGURE})", ""]
    for labels, found in rows.items():
        with_them, without = ADDED[labels]
        lines += [f"## {LABELS[labels].capitalize()}: `{with_them}` less `{without}`", ""]
        lines += table(HEADER, [cells(content, c) for content, c in found], 5)
    lines += [
        "Accuracy in % of test reviews against gold labels, the mean over seeds, with 95 % intervals. Tests are corrected (Holm) "
        "within each study, not over studies; nothing is pooled, as studies may share students and reviews. *Detectable* is the "
        "difference that one test would have found four times in five.", "",
    ]  # fmt: skip
    text = "\n".join(lines)
    png, _ = rendered(Figure(FIGURE, "What rationales changed", draw), {"rows": rows})
    output.mkdir(parents=True, exist_ok=True)
    (output / FIGURE).write_bytes(png)
    (output / TEXT).write_text(text, encoding="utf-8")
    return text


def read_reports(folders: Sequence[str]) -> list[Content]:
    """The studies' reports; problems with any of them are raised together."""
    reports, problems = [], []
    for folder in folders:
        path = f"{folder.removesuffix('report.json').rstrip('/')}/report.json"
        try:
            with fsspec.open(path, encoding="utf-8", mode="rt") as file:
                content = json.load(file)
            if any(differences([content], *methods) for methods in ADDED.values()):
                reports.append(content)
            else:
                wanted = " or ".join(f"{b} and {a}" for a, b in ADDED.values())
                problems.append(f"{path}: nothing to compare: no finished trials of {wanted} at one size and fraction.")
        except (FileNotFoundError, NotADirectoryError):
            problems.append(f"no report in '{folder}'. Write it: cotd report CONFIG; it lies in the study's folder.")
        except (ValueError, KeyError, TypeError) as error:
            problems.append(
                f"{path} is no report that this version reads ({type(error).__name__}: {error}). Write it anew: cotd report CONFIG."
            )
    if problems:
        raise CotdError(*problems)
    return reports


def differences(reports: Sequence[Content], better: str, worse: str) -> list[tuple[Content, dict[str, Any]]]:
    """Every comparison of two methods at the same data, with the report that it is from."""
    return [
        (content, c)
        for content in reports
        for c in content["comparisons"]
        if (c["method_a"], c["method_b"]) == (better, worse) and c["fraction"] is not None
    ]


def name(content: Content) -> str:
    """The study; of students that were tested elsewhere also where."""
    return str(content["study"]) + (f", on {content['source']}" if content["trained_on"] else "")


def cells(content: Content, c: dict[str, Any]) -> list[str]:
    at = {arm(g): g for g in content["groups"] if (g["size"], g["fraction"]) == (c["size"], c["fraction"])}
    with_them, without = at[c["a"]], at[c["b"]]
    verdict, size, data, *numbers = comparison_cells(c)
    reviews = f"{with_them['train_reviews']:,}"
    return [name(content), verdict, size, data, setting_of(c), reviews, percent(without), percent(with_them), *numbers]


def draw(content: Content) -> Any:
    """A panel for each kind of labels, a row for each comparison, below its study's name."""
    import matplotlib.pyplot as plt

    panels = content["rows"]
    heights = [len(found) + len({name(report) for report, _ in found}) for found in panels.values()]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(8.5 * len(panels), 1.2 + 0.27 * max(heights)), squeeze=False, sharex=True, layout="constrained"
    )
    for panel, (labels, found) in zip(axes[0], panels.items(), strict=True):
        rows: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for report, c in found:
            label = ", ".join(filter(None, [c["size"], share(c["fraction"]), setting_of(c)]))
            rows.setdefault(name(report), []).append((label, c))
        draw_differences(panel, rows)
        with_them, without = ADDED[labels]
        panel.set_title(f"{LABELS[labels]}: {with_them} less {without}", fontsize="medium")
    lowest = min(panel.get_ylim()[0] for panel in axes[0])
    for panel in axes[0]:  # rows as far apart in both
        panel.set_ylim(lowest, panel.get_ylim()[1])
    return figure
