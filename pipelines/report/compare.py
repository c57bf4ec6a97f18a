"""Several studies side by side: what rationales changed in each, from the studies' reports."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cotd.errors import CotdError
from cotd.storage.urls import is_remote, open_remote
from cotd.training.methods import METHODS
from cotd.utils.files import write_bytes, write_text
from pipelines.report.figures import LABELS, Figure, draw_differences, rendered
from pipelines.report.formatting import accuracy, place, points, setting_of, table, variant_of
from pipelines.report.published import CLAIMS
from pipelines.report.results import Content
from pipelines.report.text import COMPARISON_HEADER, comparison_cells

FIGURE, TEXT = "comparison.png", "comparison.md"
HEADER = ["study", *COMPARISON_HEADER[:3], "setting", "examples", "without", "with", *COMPARISON_HEADER[3:]]
# By whose labels both learn from: the method with rationales, and the same without.
PAIRS: dict[str, tuple[str, str]] = {
    METHODS[c.worse].labels: (c.better, c.worse) for c in CLAIMS if not c.less_data and not METHODS[c.worse].rationale
}
NOTE = (
    "Accuracy in % of test examples against gold labels, the mean over seeds, with 95 % intervals. Of two numbers of examples the "
    "first is without rationales: not every example has one. Tests are corrected (Holm) within each study, not over studies; "
    "nothing is pooled, as studies may share students and examples. *Detectable* is the difference that one test would have "
    "found with 80 % power."
)


@dataclass(frozen=True)
class Difference:
    """How much better a method did with rationales than without, at one place of one study.

    Attributes:
        labels: whose labels both learned from, a key of `PAIRS`.
        comparison: as `report.json` lists it.
        groups: the two compared, with rationales and without, as `report.json` lists them.
    """

    study: str
    labels: str
    comparison: dict[str, Any]
    groups: list[dict[str, Any]]

    @property
    def cells(self) -> list[str]:
        """A row under HEADER."""
        with_rationales, without = self.groups
        examples = " / ".join(dict.fromkeys(f"{g['train_examples']:,}" for g in (without, with_rationales)))
        shared = comparison_cells(self.comparison)
        mine = [setting_of(self.comparison), examples, accuracy(without), accuracy(with_rationales)]
        return [self.study, *shared[:3], *mine, *shared[3:]]


def compare_studies(folders: Sequence[str], output: str | Path) -> list[str]:
    """Writes `comparison.png` and `comparison.md`: for each study, how much better a method did with rationales than without.

    Args:
        folders: folders or fsspec URLs, each holding a `report.json`; rows follow their order. A report named twice is read once.

    Returns:
        The differences, as sentences.

    Raises:
        CotdError: a folder holds no report, or one without such a comparison; or the output cannot be a folder here. All
            problems are reported at once.
    """
    differences, problems = read_differences(folders)
    problems += output_problems(output)
    if problems or not differences:
        raise CotdError(*(problems or ["no study's folder was given."]))
    lines = ["# What rationales changed", "", f"![Differences in accuracy with 95 % intervals, by study]({FIGURE})", ""]
    for labels in PAIRS:
        if rows := [d.cells for d in differences if d.labels == labels]:
            lines += [f"## {title(labels)}", "", *table(HEADER, rows, 5)]
    png, _ = rendered(Figure(FIGURE, "What rationales changed", draw), {"differences": differences})
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / FIGURE, png)
    write_text(folder / TEXT, "\n".join([*lines, NOTE, ""]))
    return [
        f"{d.study}, {place(d.comparison)}: {' minus '.join(PAIRS[d.labels])} {points(d.comparison)} points, "
        f"{d.comparison['verdict']}"
        for d in differences
    ]  # fmt: skip


def title(labels: str) -> str:
    return f"{LABELS[labels].capitalize()}: {' minus '.join(PAIRS[labels])}"


def read_differences(folders: Iterable[str]) -> tuple[list[Difference], list[str]]:
    """The studies' differences, and what is wrong with the reports. Studies of one name are distinguished by their folders."""
    reports: dict[str, list[Difference]] = {}
    problems: list[str] = []
    for folder in folders:
        try:
            files, path = open_remote(folder)
            path = path if path.endswith("/report.json") else f"{path.rstrip('/')}/report.json"
            with files.open(path, "r", encoding="utf-8") as file:
                reports[path] = differences_of(json.load(file))
        except CotdError as error:
            problems += error.problems
        except (FileNotFoundError, NotADirectoryError):
            problems.append(f"no report in '{folder}'. Give a study's folder, runs/NAME, after `cotd report CONFIG`.")
        except OSError as error:
            problems.append(f"{path} cannot be read: {error}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problem = f"is not in the format of this version ({type(error).__name__}: {error})"
            problems.append(f"the report in '{folder}' {problem}. Write it again: `cotd report CONFIG`.")
    pairs = " nor ".join(f"`{a}` with `{b}`" for a, b in PAIRS.values())
    todo = "Train both with `cotd sweep CONFIG`, then run `cotd report CONFIG`."
    problems += [f"{p} compares neither {pairs} at one size and fraction. {todo}" for p, some in reports.items() if not some]
    names = [differences[0].study for differences in reports.values() if differences]
    return [
        replace(d, study=f"{d.study} ({path.removesuffix('/report.json')})") if names.count(d.study) > 1 else d
        for path, differences in reports.items()
        for d in differences
    ], problems


def output_problems(output: str | Path) -> list[str]:
    if is_remote(str(output)):
        return [f"--output '{output}' is not a local folder."]
    nearest = next((p for p in [Path(output), *Path(output).parents] if p.exists()), Path())
    return [] if nearest.is_dir() else [f"--output '{output}': '{nearest}' is a file, not a folder."]


def differences_of(content: Content) -> list[Difference]:
    """A report's comparisons of methods with and without rationales at the same data."""
    study = str(content["study"]) + (f", on {content['source']}" if content["trained_on"] else "")
    groups = {(variant_of(g), g["size"], g["fraction"]): g for g in content["groups"]}
    return [
        Difference(study, labels, c, [groups[c[side], c["size"], c["fraction"]] for side in "ab"])
        for labels, methods in PAIRS.items()
        for c in content["comparisons"]
        if (c["method_a"], c["method_b"]) == methods and c["fraction"] is not None
    ]


def draw(content: Content) -> Any:
    """A panel for each kind of labels, and in all of them the same rows, below their study's name."""
    differences: list[Difference] = content["differences"]
    places: dict[str, dict[str, None]] = {}
    for d in differences:
        places.setdefault(d.study, {})[place(d.comparison)] = None
    panels = {}
    for labels in PAIRS:
        known = {(d.study, place(d.comparison)): d.comparison for d in differences if d.labels == labels}
        if known:
            panels[title(labels)] = {s: [(p, known.get((s, p))) for p in rows] for s, rows in places.items()}
    return draw_differences(panels)
