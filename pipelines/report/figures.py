"""The report's figures: accuracy against data and against size, as the papers' figures 4 to 7, and the claims' differences."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cotd.training.methods import METHODS
from cotd.utils.text import format_percent
from pipelines.report.claims import arm, setting_of
from pipelines.report.findings import Content, short

# Colours that stay apart for colour-blind readers (Okabe and Ito 2008); None is the page's own ink.
COLOURS = {
    "finetune": None, "distill": "#E69F00", "cot_labelled": "#0072B2", "cot_unlabelled": "#009E73",
    "cot_joint": "#56B4E9", "cot_joint_unlabelled": "#B8A800", "rationale_input": "#CC79A7",
    "rationale_input_unlabelled": "#A0527E",
}  # fmt: skip
TEACHER_COLOUR = "#D55E00"
BASELINE_COLOUR = "#8A8A8A"
# Settings of one method, in studies that vary more than method, fraction and size.
STROKES = ("-", (0, (4, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
MARKERS = "osD^v"
LOOSE = (0, (6, 6))
UNTRAINED = "before this training"
INK = "#1b1b1b"
FILES = ("accuracy.png", "accuracy_by_size.png", "differences.png")
LABELS = {"gold": "trained on gold labels", "teacher": "trained on the teacher's labels"}


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        draw: makes it, as a matplotlib figure.
    """

    file: str
    title: str
    draw: Callable[[Content], Any]


def figures_of(content: Content) -> list[Figure]:
    """The figures that make sense: a study of one fraction has no curve over data, one of one size none over sizes."""
    if not content["groups"]:
        return []
    fractions, sizes = ({g[key] for g in content["groups"]} for key in ("fraction", "size"))
    figures = []
    if len(fractions) > 1:
        figures.append(Figure(FILES[0], "Accuracy against the share of training data", draw_fractions))
    if len(sizes) > 1:
        file = FILES[1] if len(fractions) > 1 else FILES[0]
        figures.append(Figure(file, "Accuracy against the student's size", draw_sizes))
    if not figures:
        figures.append(Figure(FILES[0], "Accuracy by method", draw_methods))
    if content["claims"]:
        figures.append(Figure(FILES[2], "The papers' claims: differences in accuracy, with 95 % intervals", draw_claims))
    return figures


def rendered(figure: Figure, content: Content) -> tuple[bytes, str]:
    """The figure as PNG, on white, and as an SVG element without a background, whose ink is the text colour of its page."""
    import matplotlib
    from cycler import cycler

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[str, Any] = dict.fromkeys(inked, INK)
    style |= {"axes.prop_cycle": cycler(color=[INK]), "axes.spines.top": False, "axes.spines.right": False}
    # The salt makes the SVG's identifiers this figure's own, and the same whenever it is drawn.
    style |= {"legend.framealpha": 0, "grid.color": BASELINE_COLOUR, "svg.hashsalt": figure.file, "axes.facecolor": "none"}
    with plt.rc_context(style):
        drawn = figure.draw(content)
        png, svg = io.BytesIO(), io.StringIO()
        drawn.savefig(png, format="png", dpi=130, facecolor="white")
        drawn.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        plt.close(drawn)
    element = svg.getvalue()
    return png.getvalue(), element[element.index("<svg") :].replace(INK, "currentColor")


def label_sources(content: Content) -> list[str]:
    """Whose labels the study's students learn from: the papers draw the two apart (figures 4 and 5, 6 and 7)."""
    present = {METHODS[g["method"]].labels for g in content["groups"]}
    return [source for source in LABELS if source in present]


def draw_fractions(content: Content) -> Any:
    """Accuracy against the share of training data: a panel for each size and label source, a line a method."""
    sizes = list(dict.fromkeys(g["size"] for g in content["groups"]))
    sources = label_sources(content)
    ticks = sorted({g["fraction"] for g in content["groups"]})
    figure, panels = panel_grid(len(sizes), len(sources))
    for row, size in enumerate(sizes):
        for column, source in enumerate(sources):
            panel = panels[row][column]
            groups = [g for g in content["groups"] if g["size"] == size and METHODS[g["method"]].labels == source]
            draw_lines(panel, groups, "fraction", ticks)
            draw_references(panel, content, [(b["fraction"], b["accuracy"]) for b in content["tfidf"]])
            for base in (b for b in content["bases"] if b["size"] == size):
                panel.axhline(base["accuracy"] * 100, linestyle=LOOSE, color=BASELINE_COLOUR, label=UNTRAINED)
            panel.set_xticks(ticks, [format_percent(t) for t in ticks])
            panel.set_title(f"{size}, {LABELS[source]}", fontsize="medium")
            if row == len(sizes) - 1:
                panel.set_xlabel("share of the training data")
    return finish(figure, panels)


def draw_sizes(content: Content) -> Any:
    """Accuracy against parameters, at the largest fraction that each size has: a panel for each label source."""
    sources = label_sources(content)
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for g in sorted(content["groups"], key=lambda g: g["fraction"]):
        best[arm(g), g["size"]] = g
    ticks = {g["parameters"]: g["size"] for g in content["groups"]}
    fractions = {g["fraction"] for g in best.values()}
    figure, panels = panel_grid(1, len(sources))
    for panel, source in zip(panels[0], sources, strict=True):
        groups = [g for g in best.values() if METHODS[g["method"]].labels == source]
        draw_lines(panel, groups, "parameters", sorted(ticks))
        draw_references(panel, content, [])
        panel.set_xticks(list(ticks), [f"{name}\n{short(count)}" for count, name in ticks.items()])
        at = f"{format_percent(max(fractions))} of the data" if len(fractions) == 1 else "most data each has"
        panel.set_title(f"{LABELS[source]}, {at}", fontsize="medium")
        panel.set_xlabel("parameters")
    return finish(figure, panels)


def draw_methods(content: Content) -> Any:
    """A dot for each method, in a study of one size and one fraction."""
    import matplotlib.pyplot as plt

    groups = content["groups"][::-1]
    figure, panel = plt.subplots(figsize=(7, 1.6 + 0.4 * len(groups)), layout="constrained")
    for y, g in enumerate(groups):
        x, bars = values([g])
        panel.errorbar(x, [y], xerr=bars, marker="o", capsize=3, color=COLOURS[g["method"]], linestyle="none")
    references: list[tuple[str, Any, str, Any]] = [("commonest label", content["majority"], BASELINE_COLOUR, ":")]
    references += [(UNTRAINED, base, BASELINE_COLOUR, LOOSE) for base in content["bases"]]
    if content["teacher"]:
        references.append(("teacher", content["teacher"], TEACHER_COLOUR, "--"))
    for name, entry, colour, stroke in references:
        panel.axvline(entry["accuracy"] * 100, color=colour, linestyle=stroke, label=name)
    panel.set_yticks(range(len(groups)), [arm(g) for g in groups])
    panel.set_ylim(-0.6, len(groups) - 0.4)
    panel.set_xlabel("test accuracy, % (95 % interval)")
    panel.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def draw_claims(content: Content) -> Any:
    """Each claim's differences with their intervals, below its title."""
    import matplotlib.pyplot as plt

    rows: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for claim in content["claims"]:
        for c in (content["comparisons"][i] for i in claim["comparisons"]):
            at = format_percent(c["fraction"]) if c["fraction"] is not None else f"{format_percent(c['fraction_a'])} / all"
            rows.setdefault(claim["title"], []).append((", ".join(filter(None, [c["size"], at, setting_of(c)])), c))
    count = len(rows) + sum(map(len, rows.values()))
    figure, panel = plt.subplots(figsize=(9, 1.0 + 0.3 * count))
    draw_differences(panel, rows)
    figure.tight_layout()
    return figure


def draw_differences(panel: Any, rows: Mapping[str, Sequence[tuple[str, dict[str, Any] | None]]]) -> None:
    """Differences in accuracy with their intervals, around zero; filled where the corrected test says so too.

    Args:
        rows: heading → the labels and comparisons below it; None leaves a row empty.
    """
    y, ticks, labels = 0, [], []
    for heading, comparisons in rows.items():
        y += 1
        panel.text(0, -y, heading, transform=panel.get_yaxis_transform(), va="center", fontweight="bold", fontsize="small")
        for label, c in comparisons:
            y += 1
            ticks.append(-y)
            labels.append(label)
            if c is None:
                continue
            difference, low, high = (c[key] * 100 for key in ("difference", "low", "high"))
            bars = [[max(0.0, difference - low)], [max(0.0, high - difference)]]
            colour = COLOURS[c["method_a"]]
            (dots, *_) = panel.errorbar([difference], [-y], xerr=bars, marker="o", capsize=3, color=colour)
            if c["verdict"] == "not shown":
                dots.set_markerfacecolor("none")
    panel.axvline(0, color=BASELINE_COLOUR, linewidth=1)
    panel.set_yticks(ticks, labels, fontsize="small")
    panel.set_ylim(-y - 0.6, -0.4)
    panel.set_xlabel("difference in accuracy, points (filled: beyond chance, corrected)")
    panel.grid(axis="x", alpha=0.3)


def panel_grid(rows: int, columns: int) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    size = (max(6.5, 5.2 * columns), 0.6 + 3.7 * rows)
    return plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")


def draw_lines(panel: Any, groups: list[dict[str, Any]], axis: str, ticks: list[float]) -> None:
    """One line with error bars for each method and setting, a little apart, so that their bars can be told."""
    arms = list(dict.fromkeys(arm(g) for g in groups))
    seen: dict[str, int] = {}
    for number, name in enumerate(arms):
        points = sorted((g for g in groups if arm(g) == name), key=lambda g: g[axis])
        method = points[0]["method"]
        style = seen[method] = seen.get(method, -1) + 1
        y, bars = values(points)
        x = np.array([p[axis] for p in points]) * 1.03 ** (number - (len(arms) - 1) / 2)
        panel.errorbar(
            x, y, yerr=bars, capsize=3, label=name, color=COLOURS[method],
            marker=MARKERS[style % len(MARKERS)], linestyle=STROKES[style % len(STROKES)],
        )  # fmt: skip
    panel.set_xscale("log")
    panel.minorticks_off()
    panel.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    panel.grid(alpha=0.3)


def values(groups: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies in per cent, and how far their intervals reach below and above."""
    y = np.array([g["accuracy"] * 100 for g in groups])
    return y, np.abs(np.array([[g["ci_low"], g["ci_high"]] for g in groups]).T * 100 - y)


def draw_references(panel: Any, content: Content, linear: list[tuple[float, float]]) -> None:
    """The teacher's line and band, the commonest label's line, and a linear model's points."""
    if teacher := content["teacher"]:
        panel.axhline(teacher["accuracy"] * 100, linestyle="--", color=TEACHER_COLOUR, label="teacher")
        panel.axhspan(teacher["ci_low"] * 100, teacher["ci_high"] * 100, color=TEACHER_COLOUR, alpha=0.1, linewidth=0)
    if linear:
        x, y = zip(*linear, strict=True)
        panel.plot(x, np.array(y) * 100, linestyle="-.", marker=".", color=BASELINE_COLOUR, label="TF-IDF + LR")
    panel.axhline(content["majority"]["accuracy"] * 100, linestyle=":", color=BASELINE_COLOUR, label="commonest label")


def finish(figure: Any, panels: Any) -> Any:
    """Labels the axis that panels share, and puts one legend for all of them below."""
    named: dict[str, Any] = {}
    for row in panels:
        row[0].set_ylabel("test accuracy, % (95 % interval)")
        for panel in row:
            handles, labels = panel.get_legend_handles_labels()
            named |= dict(zip(labels, handles, strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=min(4, len(named)), fontsize="small")
    return figure
