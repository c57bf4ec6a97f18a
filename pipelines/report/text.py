"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cotd.evaluation.cascade import MOST, WITHIN, Operating
from cotd.evaluation.statistics import FEW_GROUPS
from cotd.training.methods import METHODS
from cotd.utils.text import format_percent
from pipelines.report import published
from pipelines.report.figures import CASCADE_FILE, CONFUSION_FILE, FILES
from pipelines.report.findings import findings, in_short
from pipelines.report.formatting import (
    accuracy,
    fractions_of,
    p_value,
    percentage,
    points,
    short,
    size_title,
    table,
    variant_of,
)
from pipelines.report.ladder import ladder_rows
from pipelines.report.results import Content

REACHING = (
    "A student reaches the teacher where its mean accuracy is at least the teacher's on the same test examples (the question of "
    "Hsieh et al. 2023, *Outperforming LLMs using minimum model size and least training data*)."
)
EXAMPLES_PAGE = "examples.html"  # beside the report
LABELS_HEADER = ["label", "test examples", "found", "right when predicted", "confidence"]
MOST_LABELS = 30  # in the table
REACHING_HEADER = [
    "method", "size", "least data that reach it", "accuracy there", "minus the teacher's, points", "significant (Holm)",
]  # fmt: skip
COMPARISON_HEADER = ["verdict", "size", "data", "difference, points", "p (Holm)", "p", "detectable"]
COSTS_HEADER = [
    "method", "size (parameters)", "data", "seeds", "examples", "training, s", "teacher's tokens", "validation", "test",
]  # fmt: skip
MEASURED_HEADER = {"macro_f1": "macro F1", "answered": "answered", "teacher_agreement": "agrees with the teacher"}
COSTS_NOTE = (
    "Training seconds are the mean of one training run, on its hardware, with whatever else ran there. The "
    "teacher's tokens, input and output, are those of the annotations that the method learns from: they are spent once for all "
    "sizes and seeds, and methods that learn from the same annotations share them; a completion that serves both kinds of rationale "
    "is requested once, and counted for each. `distill` learns from the labels alone, and counts the whole completion. "
    "Agreement with the teacher's labels of the test examples is not accuracy."
)
METHOD_NOTES = """\
- **Intervals** have 95 % confidence: Wilson's for one seed; for several, percentiles of 2,000 bootstrap samples of test examples \
and of seeds (Owen 2007, the pigeonhole bootstrap). Those of differences draw the same examples for both sides. With few seeds \
they are somewhat too narrow, as any bootstrap of few values is.
- **Tests** are paired by test example and two-sided. Where both sides have one seed: McNemar's exact test (1947). Otherwise a \
permutation test of each example's correctness averaged over seeds, which flips the signs of the differences at random \
{draws:,} times, from a fixed seed (Fisher 1935; Yeh 2000; Phipson and Smyth 2010 for the p-value); `report.json` also has \
McNemar's test of each single seed, uncorrected (`by_seed`).
- **Correction**: Holm's (1979), over all comparisons of methods, over all of sizes, and over all with the teacher, each of \
these by itself.
- **A claim holds**, and a difference is significant, where the corrected p-value is below 5 % and the interval, which also \
reflects the seeds, does not contain zero.
- **Detectable**, in points: the smallest difference that one uncorrected test at 5 % finds with 80 % power, given how often \
the two disagree (Connor 1987).
- **Test examples** are used for no choice: models and the champion are selected on validation."""

GROUP_NOTE = (
    "- **Groups**: test examples of one group (a film, a product) are alike, and count for less than independent ones. Wilson's "
    "interval is that of the effective number of examples (Kish 1965), bootstrap samples draw groups whole, permutation tests flip "
    "the signs of a group together, and McNemar's test is not used."
)


def markdown(content: Content) -> str:
    """The whole report."""
    link = f"[Test examples with all answers and reasons]({EXAMPLES_PAGE}), those first on which the answers differ."
    lines = [*heading(content), link, ""]
    figures = {figure["file"]: [f"![{figure['title']}]({figure['file']})", ""] for figure in content["figures"]}
    confusion = figures.pop(CONFUSION_FILE, [])
    first = figures.pop(FILES[0], [])
    lines += ladder_section(content)
    lines += cascade_section(content, figures.pop(CASCADE_FILE, []))
    lines += ["## Accuracy", "", *first, *accuracy_tables(content)]
    lines += [line for figure in figures.values() for line in figure]
    lines += ["## Findings", "", *(f"- {sentence}" for sentence in findings(content)), ""]
    lines += label_table(content, confusion)
    for section in (published.published_tables, claims_table, reaching_table, costs_table, comparison_tables, missing_lines):
        lines += section(content)
    lines += ["## How this was computed", "", *METHOD_NOTES.format(draws=content["draws"]).splitlines()]
    if groups := content["test_groups"]:
        few = (
            f" {groups} groups are few: intervals over several seeds and of differences are too narrow."
            if groups < FEW_GROUPS
            else ""
        )
        lines.append(f"{GROUP_NOTE}{few}")
    if any(METHODS[g["method"]].rationale_as_input for g in content["groups"]):
        lines.append("- Students that read rationales were given the teacher's own rationale of each test example.")
    return "\n".join(lines) + "\n"


def ladder_section(content: Content) -> list[str]:
    """Who taught whom; nothing where there is one rung."""
    if len(content["ladder"]) < 2:
        return []
    header, *rows = ladder_rows(content["ladder"])
    few = [rung for rung in content["ladder"] if rung["n"] not in (None, content["test_examples"])]
    notes = [f"{rung['name']} was tested on {rung['n']:,} other examples of its own study." for rung in few]
    return [
        "## The ladder",
        "",
        *table(header, rows, 2 if "taught by" in header else 1),
        *(n for note in notes for n in (note, "")),
    ]


def cascade_section(content: Content, curve: list[str]) -> list[str]:
    """What the champion and a larger student answer together. Args: curve: the lines of its figure."""
    if (cascade := content["cascade"]) is None or not cascade["larger"]:
        return curve
    auto, within = (Operating(*cascade[rule]) for rule in ("auto", "within"))
    alone = cascade["together"][0][-1]
    sentences = [
        f"The champion, `{cascade['student']}`, answers what it is at least {auto.threshold:.1%} sure of, and hands the other "
        f"{cascade['escalated']:.1%} of the test examples on to `{cascade['larger']}`. Together they answer {accuracy(cascade)} right. "
        f"`cotd serve --escalate LARGER --below auto` chooses this on validation, where they answer {percentage(auto.accuracy)} right, "
        f"and the larger student alone {percentage(alone)}."
    ]
    if within.threshold > auto.threshold:
        sentences.append(
            f"It hands on at most {MOST:.0%}, so that a median text does not wait for the larger student; to come within "
            f"{WITHIN * 100:.0f} point of it they would hand on {within.share:.0%}: `--below within={WITHIN}`."
        )
    return ["## The cascade", "", " ".join(sentences), "", *curve]


def terminal(content: Content) -> str:
    """What fits a terminal: the accuracies and the sentences."""
    lines = [*heading(content), *accuracy_tables(content), *(f"- {sentence}" for sentence in findings(content)), ""]
    return "\n".join([*lines, *missing_lines(content)]).rstrip() + "\n"


def heading(content: Content) -> list[str]:
    planned = len(content["trials"]) + len(content["missing"])
    data, count = f"`{content['source']}`", f"{content['test_examples']:,} test examples"
    if groups := content["test_groups"]:
        count += f" in {groups:,} groups"
    if content["trained_on"] is not None:
        data = f"trained on `{content['trained_on']}`, tested on {data}"
        count += f", without {n:,} that the study trains or selects on" if (n := content["left_out"]) else ""
    lines = [
        f"# {content['study']}", "", *(line for sentence in in_short(content) for line in (sentence, "")),
        f"Task `{content['task']['name']}`: {content['task']['noun']} → {content['task']['expected']}. Data: {data}, {count}. "
        "Accuracy is against gold labels, the mean over seeds, with 95 % intervals. "
        f"{len(content['trials'])} of {planned} trials are done.", "",
    ]  # fmt: skip
    if content["given_up"]:
        lines += [f"The search stopped {content['given_up']} more early, by their validation accuracy.", ""]
    if content["missing"] or content["notes"]:
        lines += ["**Incomplete:** see [what is missing](#what-is-missing).", ""]
    return lines


def accuracy_tables(content: Content) -> list[str]:
    """Experiment 1's table for each size: method × fraction, with the baselines and the teacher."""
    fractions = sorted({g["fraction"] for g in content["groups"]})
    sizes = dict.fromkeys(g["size"] for g in content["groups"])
    if not sizes:
        return table(["", "all of the data"], reference_rows(content, [1.0]))
    header = [f"{format_percent(f)} of the data" for f in fractions]
    return [text for size in sizes for text in table([size, *header], accuracy_rows(content, size, fractions))]


def accuracy_rows(content: Content, size: str, fractions: list[float]) -> Iterator[list[str]]:
    cells = {(variant_of(g), g["fraction"]): accuracy(g) for g in content["groups"] if g["size"] == size}
    for name in dict.fromkeys(name for name, _ in cells):
        yield [f"`{name}`", *(cells.get((name, f), "") for f in fractions)]
    yield from reference_rows(content, fractions, [b for b in content["bases"] if b["size"] == size])


def reference_rows(content: Content, fractions: list[float], bases: Sequence[dict[str, Any]] = ()) -> Iterator[list[str]]:
    """What this study did not train: base models, a linear model, the most common label, the teacher."""
    blank = [""] * (len(fractions) - 1)
    for base in bases:
        yield [f"`{base['model']}` before this training", *blank, accuracy(base)]
    if content["tfidf"]:
        linear = {b["fraction"]: accuracy(b) for b in content["tfidf"]}
        yield [content["tfidf"][0]["name"], *(linear.get(f, "") for f in fractions)]
    yield [f"always *{content['majority']['label']}*", *blank, accuracy(content["majority"])]
    if teacher := content["teacher"]:
        yield [f"teacher ({teacher['model']})", *blank, accuracy(teacher)]


def claims_table(content: Content) -> list[str]:
    """The papers' claims, one row a comparison, with what the papers found."""
    if not content["claims"]:
        return []
    datasets = published.papers_datasets(content)
    rows = []
    for claim in content["claims"]:
        for c in (content["comparisons"][i] for i in claim["comparisons"]):
            title = claim["title"].replace(c["method_a"], c["a"], 1)
            rows.append([title, *comparison_cells(c), *(published.published_difference(d, c) for d in datasets)])
    header = ["claim", *COMPARISON_HEADER, *(f"{published.REPORT}, {published.DATASETS[d]}" for d in datasets)]
    return ["## The papers' claims", "", *table(header, rows, 4), *([published.TEACHER_SCORED_NOTE, ""] if datasets else [])]


def comparison_cells(c: dict[str, Any]) -> list[str]:
    """A row under COMPARISON_HEADER; of two sizes, what both were trained by takes the size's place."""
    p_values = [p_value(c[key]) for key in ("p_holm", "p_value")]
    return [c["verdict"], c.get("variant") or c["size"], fractions_of(c), points(c), *p_values, f"{c['detectable'] * 100:.1f}"]


def reaching_table(content: Content) -> list[str]:
    """The least data of each method and size that reach the teacher."""
    if not content["least_to_reach_teacher"]:
        return []
    significant = {"holds": "above", "opposite": "below", "not shown": "no"}
    rows = []
    for r in content["least_to_reach_teacher"]:
        least = f"{format_percent(r['at'])} ({r['examples']:,} examples)"
        least = f"none; best at {format_percent(r['at'])}" if r["fraction"] is None else least
        cells = [percentage(r["accuracy"]), points(r), significant[r["verdict"]]]
        rows.append([f"`{variant_of(r)}`", size_title(r), least, *cells])
    return ["## What it takes to reach the teacher", "", REACHING, "", *table(REACHING_HEADER, rows, 2)]


def costs_table(content: Content) -> list[str]:
    if not content["groups"]:
        return []
    shown = {key: name for key, name in MEASURED_HEADER.items() if any(g[key] is not None for g in content["groups"])}
    rows = [
        [
            f"`{variant_of(g)}`", size_title(g), format_percent(g["fraction"]), str(g["seeds"]), f"{g['train_examples']:,}",
            f"{g['train_seconds']:,.0f}", tokens(g["teacher_tokens"]), percentage(g["validation_accuracy"]),
            percentage(g["accuracy"]), *(measured(g[key]) for key in shown),
        ]
        for g in content["groups"]
    ]  # fmt: skip
    lines = ["## What it cost", "", *table([*COSTS_HEADER, *shown.values()], rows, 2), COSTS_NOTE, ""]
    if cost := content["annotation"]:
        price = "" if cost["cost"] is None else f", at a cost of {cost['cost']:,.4f}"
        lines += [
            f"The last run of `cotd annotate` needed {cost['requests']:,} completions, those of the test examples included: "
            f"{cost['from_store']:,} were in the store, and the rest took {cost['prompt_tokens']:,} input and "
            f"{cost['output_tokens']:,} output tokens{price}.", "",
        ]  # fmt: skip
    return lines


def measured(value: float | None) -> str:
    return "" if value is None else percentage(value)


def tokens(count: int | None) -> str:
    """None is not known, 0 is none."""
    return "unknown" if count is None else short(count) if count else "none"


def label_table(content: Content, confusion: list[str]) -> list[str]:
    """The best student's answers by label: how many of each are found, how many are right, and how sure it is of them."""
    scores = content["by_label"]
    if not scores:
        return []
    best = content["groups"][scores["group"]]
    rows = sorted(scores["rows"], key=lambda r: 2.0 if r["recall"] is None else r["recall"])
    left = max(0, len(rows) - MOST_LABELS)
    cells = [
        [f"`{r['label']}`", f"{r['examples']:,}", *(measured(r[key]) for key in ("recall", "precision", "confidence"))]
        for r in rows[:MOST_LABELS]
    ]
    lines = [
        "## By label", "",
        f"The answers of `{variant_of(best)}`, {best['size']}, {format_percent(best['fraction'])}, the labels that it finds least "
        "often first. *Confidence* is the mean probability that it gives to a label when it predicts it: calibrated, it is what "
        "is right.", "", *table(LABELS_HEADER, cells),
    ]  # fmt: skip
    if left:
        lines += [f"{left} more labels are in `report.json`.", ""]
    if scores["calibration_error"]:
        error = sum(scores["calibration_error"]) / len(scores["calibration_error"])
        temperatures = [t for t in scores["temperature"] if t is not None]
        scaled = (
            f", after division of its scores by a temperature of {sum(temperatures) / len(temperatures):.2f}"
            if temperatures
            else ""
        )
        lines += [f"Expected calibration error: {error:.3f}{scaled}.", ""]
    return [*lines, *confusion]


def comparison_tables(content: Content) -> list[str]:
    lines = []
    by_method = ["verdict", "method", *COMPARISON_HEADER[2:]]
    for title, header, key in (
        ("Every comparison of two methods", COMPARISON_HEADER, "comparisons"),
        ("Every comparison of two sizes", by_method, "size_comparisons"),
        ("Every student against the teacher", COMPARISON_HEADER, "teacher_comparisons"),
    ):
        if content[key]:
            rows = [[f"`{c['a']}` beats `{c['b']}`", *comparison_cells(c)] for c in content[key]]
            lines += [f"## {title}", "", *table(["", *header], rows, 4)]
    return lines


def missing_lines(content: Content) -> list[str]:
    if not content["missing"] and not content["notes"]:
        return []
    lines = ["## What is missing", "", *(f"- {note}" for note in content["notes"])]
    waiting = []
    for m in content["missing"]:
        if m["state"] == "not started":
            waiting.append(m["title"])
            continue
        # An error's message can be anything, markup too.
        why = f"{m['why']}." if m["state"] == "unfinished" else f"`{m['why'].replace('`', chr(39))}`"
        lines.append(f"- {m['title']}: {m['state']}: {why}")
    if waiting:
        lines.append(f"- Not started; `cotd sweep CONFIG` trains what is missing: {'; '.join(waiting)}.")
    return [*lines, ""]
