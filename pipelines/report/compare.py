"""Several studies beside one another: what rationales changed in each, from the studies' reports."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cotd.errors import CotdError
from cotd.storage.urls import is_remote, open_remote
from cotd.training.methods import METHODS
from cotd.utils.text import format_percent
from pipelines.report.claims import arm, setting_of
from pipelines.report.figures import LABELS, Figure, draw_differences, rendered
from pipelines.report.findings import Content, percent, points
from pipelines.report.published import CLAIMS
from pipelines.report.text import comparison_cells, table

FIGURE, TEXT = "comparison.png", "comparison.md"
HEADER = [
    "study", "verdict", "size", "data", "setting", "reviews", "without", "with", "difference, points", "p (Holm)", "p",
    "detectable",
]  # fmt: skip
# By whose labels both learn from: the method with rationales, and the same without.
ADDED: dict[str, tuple[str, str]] = {
    METHODS[c.worse].labels: (c.better, c.worse) for c in CLAIMS if not c.less_data and not METHODS[c.worse].rationale
}
NOTE = (
    "Accuracy in % of test reviews against gold labels, the mean over seeds, with 95 % intervals. Of two numbers of reviews the "
    "first is without rationales: not every review has one. Tests are corrected (Holm) within each study, not over studies; "
    "nothing is pooled, as studies may share students and reviews. *Detectable* is the difference that one test would have "
    "found four times in five."
)


@dataclass(frozen=True)
class Difference:
    """How much better a method did with rationales than without, at one place of one study.

    Attributes:
        labels: whose labels both learned from, a key of `ADDED`.
        comparison: as `report.json` lists it.
        cells: of the table, but for the study's.
    """

    study: str
    labels: str
    comparison: dict[str, Any]
    cells: list[str]

    @property
    def place(self) -> str:
        c = self.comparison
        return ", ".join(filter(None, [c["size"], format_percent(c["fraction"]), setting_of(c)]))


def compare_studies(folders: Sequence[str], output: str | Path) -> list[str]:
    """Writes `comparison.png` and `comparison.md`: for each study, how much better a method did with rationales than without.

    Args:
        folders: folders or fsspec URLs, each holding a `report.json`; rows follow their order. A report named twice is read once.

    Returns:
        What was found, as sentences.

    Raises:
        CotdError: a folder holds no report, or one without such a comparison; or the output cannot be a folder here. All
            that is wrong is said at once.
    """
    found, problems = read_differences(folders)
    problems += output_problems(output)
    if problems or not found:
        raise CotdError(*(problems or ["no study's folder was named."]))
    by_labels = {labels: [d for d in found if d.labels == labels] for labels in ADDED}
    lines = ["# What rationales changed", "", f"![Differences in accuracy with 95 % intervals, by study]({FIGURE})", ""]
    for labels, differences in by_labels.items():
        if differences:
            lines += [f"## {title(labels)}", "", *table(HEADER, [[d.study, *d.cells] for d in differences], 5)]
    png, _ = rendered(Figure(FIGURE, "What rationales changed", draw), {"differences": found})
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FIGURE).write_bytes(png)
    (folder / TEXT).write_text("\n".join([*lines, NOTE, ""]), encoding="utf-8")
    return [
        f"{d.study}, {d.place}: {ADDED[d.labels][0]} less {ADDED[d.labels][1]} {points(d.comparison)} points, "
        f"{d.comparison['verdict']}"
        for d in found
    ]  # fmt: skip


def title(labels: str) -> str:
    with_rationales, without = ADDED[labels]
    return f"{LABELS[labels].capitalize()}: {with_rationales} less {without}"


def read_differences(folders: Iterable[str]) -> tuple[list[Difference], list[str]]:
    """The studies' differences, and what is wrong with the reports. Studies of one name are told apart by their folders."""
    reports: dict[str, list[Difference]] = {}
    problems = []
    for folder in folders:
        try:
            path, content = read_report(folder)
            reports[path] = differences_of(content)
            if not reports[path]:
                pairs = " nor ".join(f"`{a}` with `{b}`" for a, b in ADDED.values())
                problems.append(
                    f"{path} compares neither {pairs} at one size and fraction. "
                    "Train both with `cotd sweep CONFIG`, then run `cotd report CONFIG`."
                )
        except CotdError as error:
            problems += error.problems
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problems.append(
                f"the report in '{folder}' is none that this version reads ({type(error).__name__}: {error}). "
                "Write it anew: `cotd report CONFIG`."
            )
    names = [found[0].study for found in reports.values() if found]
    return [
        replace(d, study=f"{d.study} ({path.removesuffix('/report.json')})") if names.count(d.study) > 1 else d
        for path, found in reports.items()
        for d in found
    ], problems


def read_report(folder: str) -> tuple[str, Content]:
    """A study's report, and where it lies."""
    files, path = open_remote(folder)
    if not path.endswith("/report.json"):
        path = f"{path.rstrip('/')}/report.json"
    try:
        with files.open(path, "r", encoding="utf-8") as file:
            return path, json.load(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CotdError(f"no report in '{folder}'. Name a study's folder, runs/NAME, after `cotd report CONFIG`.") from error
    except OSError as error:
        raise CotdError(f"{path} cannot be read: {error}") from error


def output_problems(output: str | Path) -> list[str]:
    if is_remote(str(output)):
        return [f"--output '{output}' is no folder here."]
    nearest = next((p for p in [Path(output), *Path(output).parents] if p.exists()), Path())
    return [] if nearest.is_dir() else [f"--output '{output}': '{nearest}' is a file, not a folder."]


def differences_of(content: Content) -> list[Difference]:
    """What a report says of methods with and without rationales at the same data."""
    study = str(content["study"]) + (f", on {content['source']}" if content["trained_on"] else "")
    places = {(arm(g), g["size"], g["fraction"]): g for g in content["groups"]}
    found = []
    for labels, methods in ADDED.items():
        for c in content["comparisons"]:
            if (c["method_a"], c["method_b"]) != methods or c["fraction"] is None:
                continue
            with_rationales, without = (places[c[side], c["size"], c["fraction"]] for side in "ab")
            counts = dict.fromkeys(f"{g['train_reviews']:,}" for g in (without, with_rationales))
            verdict, size, data, *numbers = comparison_cells(c)
            cells = [
                verdict, size, data, setting_of(c), " / ".join(counts), percent(without), percent(with_rationales), *numbers,
            ]  # fmt: skip
            found.append(Difference(study, labels, c, cells))
    return found


def draw(content: Content) -> Any:
    """A panel for each kind of labels, and in all of them the same rows, below their study's name."""
    import matplotlib.pyplot as plt

    found: list[Difference] = content["differences"]
    panels = [labels for labels in ADDED if any(d.labels == labels for d in found)]
    places: dict[str, dict[str, None]] = {}
    for d in found:
        places.setdefault(d.study, {})[d.place] = None
    count = len(places) + sum(map(len, places.values()))
    size = (2.5 + 5.5 * len(panels), 1.2 + 0.27 * count)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained")
    for panel, labels in zip(axes[0], panels, strict=True):
        known = {(d.study, d.place): d.comparison for d in found if d.labels == labels}
        draw_differences(panel, {study: [(p, known.get((study, p))) for p in rows] for study, rows in places.items()})
        panel.set_title(title(labels), fontsize="medium")
    return figure
