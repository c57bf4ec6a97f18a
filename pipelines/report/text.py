"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cotd.training.methods import METHODS
from cotd.utils.text import format_percent
from pipelines.report import published
from pipelines.report.claims import arm
from pipelines.report.findings import Content, findings, p_value, percent, points, short, signed, size_title

SCORED_BY_TEACHER = (
    f"† {published.REPORT} scored its methods with the teacher's labels against the teacher's labels, not against gold: those "
    "figures are agreement with the teacher. Its figures are of one training each, without intervals."
)


def markdown(content: Content) -> str:
    """The whole report."""
    lines = heading(content)
    lines += [f"- {sentence}" for sentence in findings(content)]
    lines += ["", "## Accuracy", "", *accuracy_tables(content)]
    for figure in content["figures"]:
        lines += [f"![{figure['title']}]({figure['file']})", ""]
    lines += beside_the_papers(content)
    lines += claims_table(content)
    lines += reaching_table(content)
    lines += costs_table(content)
    lines += comparisons_table(content)
    lines += missing_lines(content)
    lines += method_lines(content)
    return "\n".join(lines).rstrip() + "\n"


def terminal(content: Content) -> str:
    """What fits a terminal: the accuracies and the sentences."""
    lines = [*heading(content), *accuracy_tables(content), *(f"- {sentence}" for sentence in findings(content)), ""]
    return "\n".join([*lines, *missing_lines(content)]).rstrip() + "\n"


def heading(content: Content) -> list[str]:
    planned = len(content["trials"]) + len(content["missing"])
    lines = [
        f"# {content['study']}", "",
        f"Data: {data(content)}. Accuracy is against gold labels, the mean over "
        f"seeds, with 95 % intervals. {len(content['trials'])} of {planned} trials are done.", "",
    ]  # fmt: skip
    if content["given_up"]:
        lines += [f"The search gave up {content['given_up']} more, by their validation accuracy.", ""]
    if content["missing"] or content["notes"]:
        lines += ["**Incomplete:** see [what is missing](#what-is-missing).", ""]
    return lines


def data(content: Content) -> str:
    """What was trained and tested on."""
    count = f"{content['test_reviews']:,} test reviews"
    if not elsewhere(content):
        return f"`{content['source']}`, {count}"
    less = f", less {content['left_out']:,} that the study trains or selects on" if content["left_out"] else ""
    return f"trained on `{content['trained_on']}`, tested on `{content['source']}`, {count}{less}"


def elsewhere(content: Content) -> bool:
    """Whether the students were tested on another source than that of their training."""
    return content["trained_on"] is not None


def datasets_beside(content: Content) -> list[str]:
    """The papers' data sets whose figures may stand beside these: the papers tested on what they trained on."""
    return [] if elsewhere(content) else list(published.datasets_like(content["source"]))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 1) -> list[str]:
    """A table's lines; columns from `numbers` on are set to the right."""
    rule = ["---"] * numbers + ["---:"] * (len(header) - numbers)
    return [line(header), f"|{'|'.join(rule)}|", *map(line, rows), ""]


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def accuracy_tables(content: Content) -> list[str]:
    """Experiment 1's table for each size: method × fraction, with the baselines and the teacher."""
    fractions = fractions_of(content)
    sizes = list(dict.fromkeys(g["size"] for g in content["groups"]))
    lines = []
    for size in sizes:
        lines += table(
            [size, *(f"{format_percent(f)} of the data" for f in fractions)], accuracy_rows(content, size, fractions)
        )
    return lines if sizes else table(["", "all of the data"], list(reference_rows(content, [1.0])))


def fractions_of(content: Content) -> list[float]:
    return sorted({g["fraction"] for g in content["groups"]})


def accuracy_rows(content: Content, size: str, fractions: list[float]) -> Iterator[list[str]]:
    groups = [g for g in content["groups"] if g["size"] == size]
    cells = {(arm(g), g["fraction"]): g for g in groups}
    for name in dict.fromkeys(arm(g) for g in groups):
        yield [f"`{name}`", *(percent(cells[name, f]) if (name, f) in cells else "" for f in fractions)]
    blank = [""] * (len(fractions) - 1)
    yield from (
        [f"`{base['model']}` before this training", *blank, percent(base)] for base in content["bases"] if base["size"] == size
    )
    yield from reference_rows(content, fractions)


def reference_rows(content: Content, fractions: list[float]) -> Iterator[list[str]]:
    """What needs no student: a linear model, the commonest label, the teacher."""
    blank = [""] * (len(fractions) - 1)
    if content["tfidf"]:
        linear = {b["fraction"]: percent(b) for b in content["tfidf"]}
        yield ["TF-IDF + logistic regression", *(linear.get(f, "") for f in fractions)]
    always = content["majority"]
    yield [f"always *{always['label']}*", *blank, percent(always)]
    if teacher := content["teacher"]:
        yield [f"teacher ({teacher['model']})", *blank, percent(teacher)]


def beside_the_papers(content: Content) -> list[str]:
    """The papers' two tables, each of our rows followed by theirs."""
    if elsewhere(content):
        return []
    fraction_lines, size_lines = published_by_fraction(content), published_by_size(content)
    if not fraction_lines and not size_lines:
        return []
    like = datasets_beside(content)
    other = "" if len(like) == 1 else " They are of other reviews, and of another teacher's, and set the scale only."
    intro = f"{published.REPORT}'s accuracies, in %, on {' and '.join(published.DATASETS[d] for d in like)}.{other}"
    return ["## Beside the papers", "", intro, "", *fraction_lines, *size_lines, SCORED_BY_TEACHER, ""]


def published_by_fraction(content: Content) -> list[str]:
    """Experiment 1: the size that the report trained or, where the study has none such, the smallest."""
    groups = [g for g in content["groups"] if g["method"] in published.BY_FRACTION["imdb"] and not g["setting"]]
    fractions = fractions_of(content)
    if not groups or not set(fractions) & set(published.FRACTIONS):
        return []
    theirs = [g for g in groups if published.MODELS.get(g["model"]) == published.FRACTIONS_SIZE]
    size = (theirs or sorted(groups, key=lambda g: g["parameters"]))[0]
    rows = []
    for method in dict.fromkeys(g["method"] for g in groups):
        ours = {g["fraction"]: percent(g) for g in groups if (g["method"], g["size"]) == (method, size["size"])}
        rows.append([f"`{method}`, {size_title(size)}", *(ours.get(f, "") for f in fractions)])
        for dataset in datasets_beside(content):
            figures = [published.by_fraction(dataset, method, f) for f in fractions]
            rows.append([their_row(method, dataset, published.FRACTIONS_SIZE), *map(figure_cell, figures)])
    return table(["Experiment 1: data", *map(format_percent, fractions)], rows)


def published_by_size(content: Content) -> list[str]:
    """Experiment 2: sizes side by side, at the largest fraction that the study has."""
    largest = max(fractions_of(content), default=1.0)
    groups = [g for g in content["groups"] if g["fraction"] == largest and not g["setting"]]
    groups = [g for g in groups if g["method"] in published.BY_SIZE["imdb"]]
    sizes = {g["size"]: g for g in sorted(groups, key=lambda g: g["parameters"])}
    if len(sizes) < 2:
        return []
    # A column for each of our sizes, which takes theirs in where it is the same model; theirs that we lack come last.
    columns = [(size_title(g), name, published.MODELS.get(g["model"])) for name, g in sizes.items()]
    columns += [(f"{published.REPORT}'s {size}", "", size) for size in published.SIZES if size not in {c[2] for c in columns}]
    rows = []
    for method in dict.fromkeys(g["method"] for g in groups):
        ours = {g["size"]: percent(g) for g in groups if g["method"] == method}
        rows.append([f"`{method}`, {format_percent(largest)}", *(ours.get(name, "") for _, name, _ in columns), ""])
        for dataset in datasets_beside(content):
            figures = [published.by_size(dataset, method, size) for *_, size in columns]
            rows.append([their_row(method, dataset), *map(figure_cell, figures), ""])
    blank = [""] * len(columns)
    if teacher := content["teacher"]:
        rows.append([f"teacher ({teacher['model']})", *blank, percent(teacher)])
    for dataset in datasets_beside(content):
        name = f"teacher ({published.TEACHER}), {published.REPORT}, {published.DATASETS[dataset]}"
        rows.append([name, *blank, f"{published.TEACHER_ACCURACY[dataset]:.1f} %"])
    return table(["Experiment 2: size", *(title for title, *_ in columns), "teacher"], rows)


def their_row(method: str, dataset: str, size: str = "") -> str:
    mark = "†" if method in published.SCORED_BY_TEACHER else ""
    return f"{', '.join(filter(None, [published.REPORT, published.DATASETS[dataset], size]))}{mark}"


def figure_cell(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.1f} %"


def claims_table(content: Content) -> list[str]:
    """The papers' claims, cell by cell, with what the papers found."""
    if not content["claims"]:
        return []
    like = datasets_beside(content)
    rows = []
    for claim in content["claims"]:
        for i in claim["comparisons"]:
            c = content["comparisons"][i]
            theirs = [published_difference(d, c) for d in like]
            rows.append([claim["title"].replace(c["method_a"], c["a"], 1), *comparison_cells(c), *theirs])
    header = ["claim", *COMPARISON_HEADER, *(f"{published.REPORT}, {published.DATASETS[d]}" for d in like)]
    return ["## The papers' claims", "", *table(header, rows, 4), SCORED_BY_TEACHER, ""]


COMPARISON_HEADER = ["verdict", "size", "data", "difference, points", "p (Holm)", "p", "detectable"]


def comparison_cells(c: dict[str, Any]) -> list[str]:
    """Of two sizes what both were trained by takes the size's place."""
    data = (
        format_percent(c["fraction"])
        if c["fraction"] is not None
        else f"{format_percent(c['fraction_a'])} / {format_percent(c['fraction_b'])}"
    )
    p_values = [p_value(c[key]).removeprefix("p ").removeprefix("= ") for key in ("p_holm", "p_value")]
    return [c["verdict"], c.get("arm") or c["size"], data, points(c), *p_values, f"{c['detectable'] * 100:.1f}"]


def published_difference(dataset: str, c: dict[str, Any]) -> str:
    """The same two methods' difference in the SC4001 report, in points, or an empty string."""
    mark = "†" if {c["method_a"], c["method_b"]} & set(published.SCORED_BY_TEACHER) else ""
    size = published.MODELS.get(c["model"], published.FRACTIONS_SIZE)
    if size == published.FRACTIONS_SIZE:
        a = published.by_fraction(dataset, c["method_a"], c["fraction_a"])
        b = published.by_fraction(dataset, c["method_b"], c["fraction_b"])
    elif c["fraction"] == 1.0:
        a, b = (published.by_size(dataset, c[key], size) for key in ("method_a", "method_b"))
    else:
        return ""
    return "" if a is None or b is None else f"{signed((a - b) / 100)}{mark}"


BESIDE = "beyond chance (Holm)"
BESIDE_TEACHER = {"holds": "above", "opposite": "below", "not shown": "within chance"}


def reaching_table(content: Content) -> list[str]:
    """The least data of each method and size that reach the teacher."""
    least = content["least_to_reach_teacher"]
    if not least:
        return []
    rows = [
        [
            f"`{arm(r)}`", size_title(r),
            f"{format_percent(r['fraction'])} ({r['reviews']:,} reviews)"
            if r["fraction"] is not None
            else f"none; best at {format_percent(r['at'])}",
            f"{r['accuracy'] * 100:.1f} %", points(r), BESIDE_TEACHER[r["verdict"]],
        ]
        for r in least
    ]  # fmt: skip
    header = ["method", "size", "least data that reach it", "accuracy there", "less the teacher's, points", BESIDE]
    intro = (
        "A student reaches the teacher where its mean accuracy is at least the teacher's on the same test reviews (the question of "
        "Hsieh et al. 2023, *Outperforming LLMs using minimum model size and least training data*)."
    )
    return ["## What it takes to reach the teacher", "", intro, "", *table(header, rows, 2)]


def tokens(count: int | None) -> str:
    """None is not known, 0 is none."""
    return "unknown" if count is None else short(count) if count else "none"


def costs_table(content: Content) -> list[str]:
    if not content["groups"]:
        return []
    rows = [
        [
            f"`{arm(g)}`", size_title(g), format_percent(g["fraction"]), str(g["seeds"]), f"{g['train_reviews']:,}",
            f"{g['train_seconds']:,.0f}", tokens(g["teacher_tokens"]),
            f"{g['validation_accuracy'] * 100:.1f} %", f"{g['accuracy'] * 100:.1f} %", f"{g['macro_f1']:.3f}",
            f"{g['teacher_agreement'] * 100:.1f} %" if g["teacher_agreement"] is not None else "",
        ]
        for g in content["groups"]
    ]  # fmt: skip
    header = [
        "method", "size (parameters)", "data", "seeds", "reviews", "training, s", "teacher's tokens", "validation", "test", "macro F1",
        "agrees with the teacher",
    ]  # fmt: skip
    lines = ["## What it cost", "", *table(header, rows, 2), COSTS_NOTE, ""]
    if cost := content["annotation"]:
        money = f", for {cost['cost']:,.4f}" if cost["cost"] is not None else ""
        lines += [
            f"The last run of `cotd annotate` wanted {cost['requests']:,} answers, the teacher's own test among them; "
            f"{cost['from_store']:,} were known before, and the rest took {cost['prompt_tokens']:,} tokens read and "
            f"{cost['output_tokens']:,} written{money}.", "",
        ]  # fmt: skip
    return lines


COSTS_NOTE = (
    "Training seconds are the mean of one training's, on whatever it ran on, beside what else ran there. The teacher's tokens, "
    "read and written, are those of the annotations that the method learns from; they are spent once for all sizes and seeds, and "
    "methods that learn from the same ones share them; an answer that serves both kinds of rationale is asked for once, and counted "
    "for each. `distill` learns from the labels alone, and counts the whole answer. "
    "Agreement with the teacher's own labels of the test reviews is not accuracy."
)


def comparisons_table(content: Content) -> list[str]:
    lines = []
    by_method = ["verdict", "method", *COMPARISON_HEADER[2:]]
    for title, header, found in (
        ("Every comparison of two methods", COMPARISON_HEADER, content["comparisons"]),
        ("Every comparison of two sizes", by_method, content["size_comparisons"]),
        ("Every student against the teacher", COMPARISON_HEADER, content["teacher_comparisons"]),
    ):
        if found:
            rows = [[f"`{c['a']}` beats `{c['b']}`", *comparison_cells(c)] for c in found]
            lines += [f"## {title}", "", *table(["", *header], rows, 4)]
    return lines


def missing_lines(content: Content) -> list[str]:
    if not content["missing"] and not content["notes"]:
        return []
    lines = ["## What is missing", ""]
    lines += [f"- {note}" for note in content["notes"]]
    for m in content["missing"]:
        if m["state"] in ("failed", "unreadable"):  # a message that is anything, markup too
            why = m["why"].replace("`", "'")
            lines.append(f"- {m['title']}: {m['state']}: `{why}`")
        elif m["state"] != "not started":
            lines.append(f"- {m['title']}: {m['state']}: {m['why']}.")
    if waiting := [m["title"] for m in content["missing"] if m["state"] == "not started"]:
        lines.append(f"- Not started; `cotd sweep CONFIG` trains what is missing: {'; '.join(waiting)}.")
    return [*lines, ""]


def method_lines(content: Content) -> list[str]:
    """How the figures were computed, with sources."""
    readers = any(METHODS[g["method"]].rationale_as_input for g in content["groups"])
    return [
        "## How this was computed", "",
        "- **Intervals** hold 95 %: Wilson's for one seed; over several, percentiles of 2,000 bootstrap samples of test reviews and of "
        "seeds (Owen 2007, the pigeonhole bootstrap). Those of differences draw the same reviews for both sides. With few seeds they "
        "are somewhat too narrow, as any bootstrap of few is.",
        "- **Tests** are paired by test review and two-sided. Where both sides have one seed: McNemar's exact test (1947). Else a "
        "permutation test of each review's correctness averaged over seeds, the signs of whose differences are flipped at random "
        f"{content['draws']:,} times, from a fixed seed (Fisher 1935; Yeh 2000; Phipson and Smyth 2010 for the p-value); `report.json` "
        "has McNemar's test of each single seed too, uncorrected (`by_seed`).",
        "- **Correction**: Holm's (1979), over all comparisons of methods, over all of sizes, and over all with the teacher: each of "
        "these by itself.",
        "- **A claim holds** where the corrected p-value is below 5 % and the interval, which knows of seeds too, does not hold zero.",
        "- **Detectable**, in points: the smallest difference that one uncorrected test at 5 % finds with 80 % power, given how often "
        "the two disagree (Connor 1987).",
        "- **Test reviews** chose nothing: models are selected, and the champion is chosen, on validation.",
        *(["- Students that read rationales were given the teacher's own rationale of each test review."] if readers else []),
        "",
    ]  # fmt: skip
