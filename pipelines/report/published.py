"""What the papers published: accuracies beside a study's own, and the claims that a study can test.

Accuracies are those of the SC4001 report, "Chain-of-Thought (CoT) Distillation", section 6, in per cent, of one training run
each. Its two methods that learn the teacher's labels were scored against the teacher's labels of the test examples, not against
gold: those figures measure agreement with the teacher, and compare only loosely with a study's own, which are against gold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cotd.utils.text import format_percent
from pipelines.report.formatting import accuracy, signed, size_title, table
from pipelines.report.results import Content

REPORT = "SC4001"
TASK = "sentiment"  # of both data sets
SCORED_BY_TEACHER = {"cot_unlabelled", "distill"}
DATASETS = {"imdb": "IMDb", "yelp": "Yelp"}
TEACHER_SCORED_NOTE = (
    f"† {REPORT} scored the methods that learn the teacher's labels against the teacher's labels, not against gold: "
    "those figures measure agreement with the teacher. Its figures are of one training run each, without intervals."
)
TEACHER = "GPT-3.5, few-shot chain of thought"
TEACHER_ACCURACY = {"imdb": 89.6, "yelp": 94.8}
# What the report trained, by the names of its models on the hub, and what it calls their size.
MODELS = {"google/t5-v1_1-small": "60M", "google/t5-v1_1-base": "220M"}

# Experiment 1 trains T5 60M on shares of the data, experiment 2 both sizes on all of it.
FRACTIONS = (0.1, 0.25, 0.5, 1.0)
FRACTIONS_SIZE = "60M"
SIZES = ("60M", "220M")
# (data set, method) → accuracies at FRACTIONS and at SIZES. Where both have a figure, the report's two differ a little.
ACCURACIES = {
    ("imdb", "finetune"): ((81.0, 80.1, 83.5, 85.0), (85.1, 92.9)),
    ("imdb", "distill"): ((72.7, 72.7, 81.9, 84.2), (84.2, 90.7)),
    ("imdb", "cot_labelled"): ((87.5, 87.6, 87.9, 88.5), (88.5, 93.5)),
    ("imdb", "cot_unlabelled"): ((84.7, 86.3, 86.8, 88.4), (86.3, 91.1)),
    ("yelp", "finetune"): ((91.7, 92.7, 92.6, 92.8), (92.8, 95.9)),
    ("yelp", "distill"): ((90.3, 90.2, 91.3, 92.5), (92.5, 95.0)),
    ("yelp", "cot_labelled"): ((92.9, 93.1, 93.1, 93.2), (93.2, 96.6)),
    ("yelp", "cot_unlabelled"): ((92.6, 92.6, 93.0, 93.4), (92.7, 95.5)),
}
METHODS = {method for _, method in ACCURACIES}
# (data set, method, fraction or size) → accuracy.
BY_FRACTION = {(*key, f): a for key, (first, _) in ACCURACIES.items() for f, a in zip(FRACTIONS, first, strict=True)}
BY_SIZE: dict[tuple[str, str, str | None], float]
BY_SIZE = {(*key, s): a for key, (_, second) in ACCURACIES.items() for s, a in zip(SIZES, second, strict=True)}


@dataclass(frozen=True)
class Claim:
    """One method is better than another, for students of one size.

    Attributes:
        less_data: the better one has the smallest fraction and the other all of the data; otherwise both have the same.
    """

    better: str
    worse: str
    source: str
    less_data: bool = False

    @property
    def title(self) -> str:
        if self.less_data:
            return f"{self.better} with the least data beats {self.worse} with all of it"
        return f"{self.better} beats {self.worse}"


CLAIMS = (
    Claim("cot_labelled", "finetune", "Hsieh et al. 2023, section 4.1; SC4001, figures 4 and 6"),
    Claim("cot_unlabelled", "distill", "Hsieh et al. 2023, section 4.1; SC4001, figures 5 and 7"),
    Claim("cot_labelled", "finetune", "SC4001, section 4.1", less_data=True),
    Claim("cot_unlabelled", "distill", "SC4001, section 4.1", less_data=True),
    Claim("cot_labelled", "cot_joint", "Hsieh et al. 2023, section 4.4"),
    Claim("cot_unlabelled", "cot_joint_unlabelled", "Hsieh et al. 2023, section 4.4"),
)


def papers_datasets(content: Content) -> list[str]:
    """The papers' data set to compare with, where the study's is the same, and so is its task: they tested on what they trained on."""
    same_task = content["task"]["name"] == TASK and content["task"]["built_in"]
    if not same_task or content["trained_on"] is not None:
        return []
    return [d for d in DATASETS if d in content["source"].lower()]


def published_tables(content: Content) -> list[str]:
    """The papers' two tables, each of our rows followed by theirs."""
    datasets = papers_datasets(content)
    groups = [g for g in content["groups"] if g["method"] in METHODS and not g["setting"]]
    tables = [*published_by_fraction(groups, datasets), *published_by_size(content, groups, datasets)]
    if not datasets or not tables:
        return []
    intro = f"{REPORT}'s accuracies, in %, on {' and '.join(DATASETS[d] for d in datasets)}."
    return ["## Compared with the papers", "", intro, "", *tables, TEACHER_SCORED_NOTE, ""]


def published_by_fraction(groups: list[dict[str, Any]], datasets: list[str]) -> list[str]:
    """Experiment 1, at the size that the papers trained or, where the study does not have it, the smallest."""
    fractions = sorted({g["fraction"] for g in groups})
    if not set(fractions) & set(FRACTIONS):
        return []
    same = [g for g in groups if MODELS.get(g["model"]) == FRACTIONS_SIZE]
    shown = min(same or groups, key=lambda g: g["parameters"])
    rows = []
    for method in dict.fromkeys(g["method"] for g in groups):
        cells = {g["fraction"]: accuracy(g) for g in groups if (g["method"], g["size"]) == (method, shown["size"])}
        rows.append([f"`{method}`, {size_title(shown)}", *(cells.get(f, "") for f in fractions)])
        for d in datasets:
            figures = [published_cell(BY_FRACTION.get((d, method, f))) for f in fractions]
            rows.append([published_title(method, d, FRACTIONS_SIZE), *figures])
    return table(["Experiment 1: data", *map(format_percent, fractions)], rows)


def published_by_size(content: Content, groups: list[dict[str, Any]], datasets: list[str]) -> list[str]:
    """Experiment 2: sizes side by side, at the largest fraction that the study has."""
    largest = max((g["fraction"] for g in content["groups"]), default=1.0)
    groups = [g for g in groups if g["fraction"] == largest]
    sizes = {g["size"]: g for g in sorted(groups, key=lambda g: g["parameters"])}
    if len(sizes) < 2:
        return []
    # A column for each of our sizes, which has theirs too if it is the same model; then theirs that we do not have.
    columns = [(size_title(g), name, MODELS.get(g["model"])) for name, g in sizes.items()]
    columns += [(f"{REPORT}'s {size}", "", size) for size in SIZES if size not in {c[2] for c in columns}]
    rows = []
    for method in dict.fromkeys(g["method"] for g in groups):
        cells = {g["size"]: accuracy(g) for g in groups if g["method"] == method}
        rows.append([f"`{method}`, {format_percent(largest)}", *(cells.get(name, "") for _, name, _ in columns), ""])
        for d in datasets:
            figures = [published_cell(BY_SIZE.get((d, method, size))) for *_, size in columns]
            rows.append([published_title(method, d), *figures, ""])
    blank = [""] * len(columns)
    if teacher := content["teacher"]:
        rows.append([f"teacher ({teacher['model']})", *blank, accuracy(teacher)])
    for d in datasets:
        name = f"teacher ({TEACHER}), {REPORT}, {DATASETS[d]}"
        rows.append([name, *blank, published_cell(TEACHER_ACCURACY[d])])
    return table(["Experiment 2: size", *(title for title, *_ in columns), "teacher"], rows)


def published_title(method: str, dataset: str, size: str = "") -> str:
    mark = "†" if method in SCORED_BY_TEACHER else ""
    return f"{', '.join(filter(None, [REPORT, DATASETS[dataset], size]))}{mark}"


def published_cell(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.1f} %"


def published_difference(dataset: str, c: dict[str, Any]) -> str:
    """The same two methods' difference in the SC4001 report, in points, or an empty string."""
    size = MODELS.get(c["model"], FRACTIONS_SIZE)
    if size == FRACTIONS_SIZE:
        a, b = (BY_FRACTION.get((dataset, c[f"method_{s}"], c[f"fraction_{s}"])) for s in "ab")
    else:
        a, b = (BY_SIZE.get((dataset, c[f"method_{s}"], size)) if c["fraction"] == 1.0 else None for s in "ab")
    mark = "†" if {c["method_a"], c["method_b"]} & SCORED_BY_TEACHER else ""
    return "" if a is None or b is None else f"{signed((a - b) / 100)}{mark}"
