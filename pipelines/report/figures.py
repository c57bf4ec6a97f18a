"""The report's figures: accuracy against data and against size, as the papers' figures 4 to 7, and the claims' differences."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cotd.training.methods import METHODS
from cotd.utils.text import format_percent
from pipelines.report.formatting import place, short, variant_of
from pipelines.report.results import Content

# Colours that colour-blind readers can distinguish (Okabe and Ito 2008, Paul Tol's muted scheme); None is the page's own ink.
COLOURS = {
    "finetune": None, "distill": "#E69F00", "cot_labelled": "#0072B2", "cot_unlabelled": "#009E73",
    "cot_joint": "#56B4E9", "cot_joint_unlabelled": "#B8A800", "rationale_input": "#CC79A7",
    "rationale_input_unlabelled": "#A0527E", "distill_soft": "#882255", "distill_then_finetune": "#332288",
    "cot_after": "#117733", "cot_after_unlabelled": "#999933",
}  # fmt: skip
OTHER_COLOURS = ("#44AA99", "#AA4499", "#6699CC", "#661100")  # of methods that are added (Paul Tol's muted scheme)
TEACHER_COLOUR, BASELINE_COLOUR, INK, CORRECT_COLOUR = "#D55E00", "#8A8A8A", "#1b1b1b", "#56B4E9"
# Settings of one method, in studies that vary more than method, fraction and size.
STROKES = ("-", (0, (4, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
MARKERS = "osD^v"
CONFUSION_FILE = "confusion.png"
CURVES_FILE = "learning_curves.png"
CASCADE_FILE = "risk_coverage.png"
FILES = ("accuracy.png", "accuracy_by_size.png", "differences.png", CURVES_FILE, CASCADE_FILE, CONFUSION_FILE)
MOST_LABELS = 60  # of a confusion matrix; more cannot be read
LABELS = {"gold": "trained on gold labels", "teacher": "trained on the teacher's labels"}
ACCURACY_AXIS = "test accuracy, % (95 % interval)"

Rows = Mapping[str, Sequence[tuple[str, dict[str, Any] | None]]]


@dataclass(frozen=True)
class Figure:
    """A figure of the report; `draw` makes it, as a matplotlib figure."""

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
        figures.append(Figure(FILES[len(figures)], "Accuracy against the student's size", draw_sizes))
    if not figures:
        figures.append(Figure(FILES[0], "Accuracy by method", draw_methods))
    if content["claims"]:
        figures.append(Figure(FILES[2], "The papers' claims: differences in accuracy, with 95 % intervals", draw_claims))
    if any(len(t["curve"]) > 1 for t in content["trials"]):
        figures.append(Figure(CURVES_FILE, "Validation accuracy while training, the mean over seeds", draw_curves))
    if content["cascade"]:
        figures.append(Figure(CASCADE_FILE, "The champion's surest answers on validation", draw_risk_coverage))
    if content["by_label"] and len(content["by_label"]["labels"]) <= MOST_LABELS:
        figures.append(
            Figure(CONFUSION_FILE, "What the best student takes each label for, in % of its examples", draw_confusion)
        )
    return figures


def colour_of(method: str) -> str | None:
    """A method's colour; one that is not in COLOURS gets one of OTHER_COLOURS."""
    if method in COLOURS:
        return COLOURS[method]
    return OTHER_COLOURS[[name for name in METHODS if name not in COLOURS].index(method) % len(OTHER_COLOURS)]


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


def draw_fractions(content: Content) -> Any:
    """Accuracy against the share of training data: a panel for each size and label source, a line a method."""
    sizes = list(dict.fromkeys(g["size"] for g in content["groups"]))
    ticks = sorted({g["fraction"] for g in content["groups"]})
    sources = by_label_source(content["groups"])
    figure, panels = panel_grid(len(sizes), len(sources))
    for row, size in zip(panels, sizes, strict=True):
        for panel, (source, groups) in zip(row, sources.items(), strict=True):
            draw_lines(panel, [g for g in groups if g["size"] == size], "fraction", ticks)
            if linear := content["tfidf"]:
                x, y = [b["fraction"] for b in linear], [b["accuracy"] * 100 for b in linear]
                panel.plot(x, y, linestyle="-.", marker=".", color=BASELINE_COLOUR, label=linear[0]["name"])
            draw_references(panel, content, [b for b in content["bases"] if b["size"] == size])
            panel.set_xticks(ticks, [format_percent(t) for t in ticks])
            panel.set_title(f"{size}, {LABELS[source]}", fontsize="medium")
    for panel in panels[-1]:
        panel.set_xlabel("share of the training data")
    return finish(figure, panels)


def draw_sizes(content: Content) -> Any:
    """Accuracy against parameters, at the largest fraction that each size has: a panel for each label source."""
    groups = sorted(content["groups"], key=lambda g: g["fraction"])
    largest = list({(variant_of(g), g["size"]): g for g in groups}.values())
    ticks = {g["parameters"]: g["size"] for g in content["groups"]}
    fractions = {g["fraction"] for g in largest}
    at = f"{format_percent(max(fractions))} of the data" if len(fractions) == 1 else "most data each has"
    sources = by_label_source(largest)
    figure, panels = panel_grid(1, len(sources))
    for panel, (source, groups) in zip(panels[0], sources.items(), strict=True):
        draw_lines(panel, groups, "parameters", sorted(ticks))
        draw_references(panel, content)
        panel.set_xticks(list(ticks), [f"{name}\n{short(count)}" for count, name in ticks.items()])
        panel.set_title(f"{LABELS[source]}, {at}", fontsize="medium")
        panel.set_xlabel("parameters")
    return finish(figure, panels)


def draw_risk_coverage(content: Content) -> Any:
    """The accuracy of the champion's surest answers against their share, and of all with the larger student's for the others."""
    cascade = content["cascade"]
    shares, accuracies = ([point[i] * 100 for point in cascade["curve"]] for i in (1, 2))
    figure, panels = panel_grid(1, 1)
    panel = panels[0][0]
    panel.plot(shares, accuracies, color=INK, label=f"{cascade['student']}: its surest answers")
    if cascade["larger"]:
        kept, together = zip(*((100 - share * 100, right * 100) for _, share, right in cascade["together"]), strict=True)
        panel.plot(kept, together, color=TEACHER_COLOUR, label=f"all answers, the others by {cascade['larger']}")
        threshold, share, _ = cascade["auto"]
        panel.axvline(100 - share * 100, color=BASELINE_COLOUR, linestyle=":", label=f"handed on below {threshold:.3f}")
    panel.set_xlabel("share of the examples that the champion answers, the surest first, %")
    panel.grid(alpha=0.3)
    return finish(figure, panels, "validation accuracy, %")


def draw_methods(content: Content) -> Any:
    """A dot for each method, in a study of one size and one fraction."""
    import matplotlib.pyplot as plt

    groups = content["groups"][::-1]
    figure, panel = plt.subplots(figsize=(7, 1.6 + 0.4 * len(groups)), layout="constrained")
    for y, g in enumerate(groups):
        x, bars = percentages([g])
        panel.errorbar(x, [y], xerr=bars, marker="o", capsize=3, color=colour_of(g["method"]), linestyle="none")
    draw_references(panel, content, content["bases"], vertical=True)
    panel.set_yticks(range(len(groups)), [variant_of(g) for g in groups])
    panel.set_ylim(-0.6, len(groups) - 0.4)
    panel.set_xlabel(ACCURACY_AXIS)
    panel.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def draw_curves(content: Content) -> Any:
    """Validation accuracy against steps, a panel for each size: the mean over seeds, at the largest fraction of each method."""
    groups = list({(g["size"], variant_of(g)): g for g in sorted(content["groups"], key=lambda g: g["fraction"])}.values())
    sizes = list(dict.fromkeys(g["size"] for g in content["groups"]))
    figure, panels = panel_grid(1, len(sizes), sharex=False)
    for panel, size in zip(panels[0], sizes, strict=True):
        seen: dict[str, int] = {}
        for group in (g for g in groups if g["size"] == size):
            style = seen[group["method"]] = seen.get(group["method"], -1) + 1
            curves = [dict(content["trials"][i]["curve"]) for i in group["trials"]]
            steps = sorted(set.intersection(*map(set, curves)))  # a trial may stop early
            means = [float(np.mean([curve[step] for curve in curves])) * 100 for step in steps]
            colour, stroke = colour_of(group["method"]), STROKES[style % len(STROKES)]
            panel.plot(steps, means, marker=".", color=colour, linestyle=stroke, label=variant_of(group))
        panel.set_title(size, fontsize="medium")
        panel.set_xlabel("steps")
        panel.grid(alpha=0.3)
    return finish(figure, panels, "validation accuracy, %")


def draw_claims(content: Content) -> Any:
    """Each claim's differences with their intervals, below its title."""
    comparisons = content["comparisons"]
    rows = {c["title"]: [(place(comparisons[i]), comparisons[i]) for i in c["comparisons"]] for c in content["claims"]}
    return draw_differences({"": rows})


def draw_differences(panels: Mapping[str, Rows]) -> Any:
    """Differences in accuracy with their intervals, around zero; filled where they are significant.

    Args:
        panels: title → heading → the labels and comparisons below it, the same labels in each panel; None leaves a row empty.
    """
    import matplotlib.pyplot as plt

    count = max(len(rows) + sum(map(len, rows.values())) for rows in panels.values())
    size = (2.5 + 5.5 * len(panels), 1.2 + 0.27 * count)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained")
    for panel, (title, rows) in zip(axes[0], panels.items(), strict=True):
        y, ticks = 0, {}
        for heading, comparisons in rows.items():
            y -= 1
            panel.text(0, y, heading, transform=panel.get_yaxis_transform(), va="center", fontweight="bold", fontsize="small")
            for label, c in comparisons:
                y -= 1
                ticks[y] = label
                if c is not None:
                    draw_difference(panel, y, c)
        panel.axvline(0, color=BASELINE_COLOUR, linewidth=1)
        panel.set_yticks(list(ticks), list(ticks.values()), fontsize="small")
        panel.set_ylim(y - 0.6, -0.4)
        panel.set_xlabel("difference in accuracy, points (filled: significant, corrected)")
        panel.grid(axis="x", alpha=0.3)
        panel.set_title(title, fontsize="medium")
    return figure


def draw_confusion(content: Content) -> Any:
    """Gold labels downwards, predicted ones across: the share of each gold label's examples."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    labels = [shorten(label) for label in content["by_label"]["labels"]]
    counts = np.array(content["by_label"]["confusion"])
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = 2.2 + 0.42 * len(labels)
    figure, panel = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    for i, j in np.argwhere(counts):  # transparent: the page may be dark
        panel.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color=CORRECT_COLOUR, alpha=0.1 + 0.6 * shares[i, j], linewidth=0))
        panel.text(j, i, f"{shares[i, j] * 100:.0f}", ha="center", va="center", fontsize="small" if len(labels) <= 10 else 6.5)
    panel.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize="small")
    panel.set_yticks(range(len(labels)), labels, fontsize="small")
    edge = len(labels) - 0.5
    panel.set(xlabel="predicted", ylabel="gold", xlim=(-0.5, edge), ylim=(edge, -0.5))
    return figure


def shorten(label: str, most: int = 24) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def draw_difference(panel: Any, y: float, c: dict[str, Any]) -> None:
    difference, low, high = (c[key] * 100 for key in ("difference", "low", "high"))
    bars = [[max(0.0, difference - low)], [max(0.0, high - difference)]]
    (dots, *_) = panel.errorbar([difference], [y], xerr=bars, marker="o", capsize=3, color=colour_of(c["method_a"]))
    if c["verdict"] == "not shown":
        dots.set_markerfacecolor("none")


def by_label_source(groups: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The groups by whose labels they learn: the papers have a figure for each (figures 4 and 5, 6 and 7)."""
    sources = {source: [g for g in groups if METHODS[g["method"]].labels == source] for source in LABELS}
    return {source: some for source, some in sources.items() if some}


def panel_grid(rows: int, columns: int, sharex: bool = True) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    size = (max(6.5, 5.2 * columns), 0.6 + 3.7 * rows)
    return plt.subplots(rows, columns, figsize=size, sharex=sharex, sharey=True, squeeze=False, layout="constrained")


def draw_lines(panel: Any, groups: list[dict[str, Any]], axis: str, ticks: list[float]) -> None:
    """One line with error bars for each method and setting, shifted a little, so that the bars do not overlap."""
    variants = list(dict.fromkeys(variant_of(g) for g in groups))
    seen: dict[str, int] = {}
    for number, name in enumerate(variants):
        points = sorted((g for g in groups if variant_of(g) == name), key=lambda g: g[axis])
        method = points[0]["method"]
        style = seen[method] = seen.get(method, -1) + 1
        y, bars = percentages(points)
        x = np.array([p[axis] for p in points]) * 1.03 ** (number - (len(variants) - 1) / 2)
        panel.errorbar(
            x, y, yerr=bars, capsize=3, label=name, color=colour_of(method),
            marker=MARKERS[style % len(MARKERS)], linestyle=STROKES[style % len(STROKES)],
        )  # fmt: skip
    panel.set_xscale("log")
    panel.minorticks_off()
    panel.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    panel.grid(alpha=0.3)


def percentages(groups: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies in per cent, and how far their intervals reach below and above."""
    y = np.array([g["accuracy"] * 100 for g in groups])
    return y, np.abs(np.array([[g["ci_low"], g["ci_high"]] for g in groups]).T * 100 - y)


def draw_references(panel: Any, content: Content, bases: Sequence[dict[str, Any]] = (), vertical: bool = False) -> None:
    """The teacher's line and band, and the lines of the most common label and of base models."""
    draw_line, draw_band = (panel.axvline, panel.axvspan) if vertical else (panel.axhline, panel.axhspan)
    references: list[tuple[dict[str, Any], str, str, Any]]
    references = [(content["majority"], content["majority"]["name"], BASELINE_COLOUR, ":")]
    references += [(base, "before this training", BASELINE_COLOUR, (0, (6, 6))) for base in bases]
    if teacher := content["teacher"]:
        references.append((teacher, "teacher", TEACHER_COLOUR, "--"))
        draw_band(teacher["ci_low"] * 100, teacher["ci_high"] * 100, color=TEACHER_COLOUR, alpha=0.1, linewidth=0)
    for entry, label, colour, stroke in references:
        draw_line(entry["accuracy"] * 100, color=colour, linestyle=stroke, label=label)


def finish(figure: Any, panels: Any, axis: str = ACCURACY_AXIS) -> Any:
    """Labels the axis that panels share, and puts one legend for all of them below."""
    named: dict[str, Any] = {}
    for row in panels:
        row[0].set_ylabel(axis)
        for panel in row:
            handles, labels = panel.get_legend_handles_labels()
            named |= dict(zip(labels, handles, strict=True))
    longest = max(map(len, named), default=0)
    fit = int(13 * figure.get_figwidth() / (longest + 6))  # 13 letters an inch, and each has its handle
    columns = max(1, min(4, len(named), fit))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, fontsize="small")
    return figure
