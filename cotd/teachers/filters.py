"""Which annotations students learn from: named filters, applied in the order in which a study lists them.

A filter is a function of the annotations that are usable so far; it returns which of them stay. The others are quarantined
with the filter's name; where it judges rationales, their labels may still be learned. A new filter is a function and an entry in
the tables below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator

from cotd.data.spill import TextFile
from cotd.errors import nearest, unknown
from cotd.tasks.base import Task
from cotd.teachers.near_duplicates import near_duplicate_rows
from cotd.utils.text import count_words, words

if TYPE_CHECKING:
    from cotd.students.rationale_gain import RationaleGain

# The model that `rationale_helps` scores with unless it names another.
SCORER = "embedded:smollm2-135m-instruct"
# What the quarantine reason of a filtered annotation begins with; the filter's name follows.
FILTERED = "filtered: "
QUOTE = re.compile(r'"([^"]*)"|“([^”]*)”')
LEFT_OUT = re.compile(r"\.{3,}|…")  # what stands in a quote for words of the text
# Example ids → their texts, and their own options or None.
Read = Callable[[Sequence[str]], tuple[Sequence[str], Sequence[Sequence[str] | None]]]


@dataclass(frozen=True)
class FilterContext:
    """What a filter may look at besides the annotations.

    Attributes:
        gold: example id → its gold label, of the training examples that have one.
        read: example ids → their texts, and their own options or None.
        models: name → what scores rationales; contexts of one run share them.
    """

    task: Task
    gold: Mapping[str, str] | pd.Series
    read: Read
    models: dict[str, RationaleGain] = field(default_factory=dict)


def agrees_with_gold(annotations: pd.DataFrame, context: FilterContext) -> np.ndarray:
    """Keeps annotations whose label is the gold label, or whose example has none."""
    gold = annotations["example_id"].map(context.gold)
    return (gold.isna() | (gold == annotations["label"])).to_numpy(dtype=bool)


def agrees_with_majority(annotations: pd.DataFrame, context: FilterContext) -> np.ndarray:
    """Keeps the samples whose label most samples of their example have (self-consistency, Wang et al. 2023).

    Of labels with equally many, the one that was sampled first is the majority.
    """
    key = ["example_id", "gold_conditioned"]
    if not annotations.duplicated(key).any():
        return np.ones(len(annotations), dtype=bool)
    votes = annotations.groupby([*key, "label"], sort=False)["sample"].agg(["size", "min"]).reset_index()
    majority = votes.sort_values([*key, "size", "min"], ascending=[True, True, False, True]).drop_duplicates(key)
    label = annotations[key].merge(majority[[*key, "label"]], on=key, how="left")["label"]
    return label.to_numpy() == annotations["label"].to_numpy()


def length(
    annotations: pd.DataFrame, context: FilterContext, *, min_words: int = 3, max_words: int | None = None
) -> np.ndarray:
    """Keeps rationales of `min_words` to `max_words` words."""
    words = annotations["rationale"].map(count_words).to_numpy(dtype=int)
    return (words >= min_words) & (words <= (max_words if max_words is not None else np.inf))


def near_duplicates(annotations: pd.DataFrame, context: FilterContext, *, similarity: float = 0.8) -> np.ndarray:
    """Keeps the first of the rationales that say nearly the same of different examples.

    Rationales that were written given the gold label are compared among themselves.

    Args:
        similarity: Jaccard index of the sets of word trigrams, in (0, 1], from which two rationales are duplicates.
    """
    keep = np.ones(len(annotations), dtype=bool)
    for _, rows in annotations.reset_index(drop=True).groupby("gold_conditioned"):
        keep[rows.index.to_numpy()] = ~near_duplicate_rows(rows["rationale"].tolist(), similarity)
    return keep


def names_the_label(
    annotations: pd.DataFrame, context: FilterContext, *, keep: Literal["with", "without"] = "with"
) -> np.ndarray:
    """Keeps rationales that contain their own label's word or, with `keep: without`, those that do not."""
    return rationales_naming_labels(annotations, context.task) == (keep == "with")


def quotes_the_text(annotations: pd.DataFrame, context: FilterContext, *, at_least: int = 1) -> np.ndarray:
    """Keeps rationales that quote their text, and in which every quote stands in the text, word by word.

    Args:
        at_least: how many quotes there must be; with 0 a rationale without any stays, too.
    """
    texts, _ = context.read(annotations["example_id"].to_list())
    rows = zip(map(quotes_in, annotations["rationale"]), texts, strict=True)
    return np.array([quotes is not None and len(quotes) >= at_least and stand_in(quotes, text) for quotes, text in rows])


def quotes_in(rationale: str) -> list[str] | None:
    """What stands between quotation marks; None if one of them has no partner."""
    unpaired = re.search('["“”]', QUOTE.sub("", rationale))
    return None if unpaired else [straight or curly for straight, curly in QUOTE.findall(rationale)]


def stand_in(quotes: Sequence[str], text: str) -> bool:
    """Whether the words of each quote stand in a text one after another, but for those that "…" stands for."""
    whole = f" {' '.join(words(text))} "
    return all(f" {' '.join(words(part))} " in whole for quote in quotes for part in LEFT_OUT.split(quote) if words(part))


def rationale_helps(annotations: pd.DataFrame, context: FilterContext, *, model: str = SCORER) -> np.ndarray:
    """Keeps rationales that make their label likelier to a model than the text alone does; see `RationaleGain`.

    Args:
        model: a causal model by any name: the students' base, or one like it.
    """
    from cotd.students.rationale_gain import RationaleGain  # PyTorch, which takes seconds to import

    if model not in context.models:
        context.models[model] = RationaleGain(model, context.task)
    texts, choices = context.read(annotations["example_id"].to_list())
    return context.models[model](texts, choices, annotations["rationale"].to_list(), annotations["label"].to_list()) > 0


FILTERS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f
    for f in (
        agrees_with_gold, agrees_with_majority, length, near_duplicates, names_the_label, quotes_the_text, rationale_helps,
    )
}  # fmt: skip
# Filters that judge rationales: annotations with a label alone stay, and so does the label of one that is taken out.
OF_RATIONALES = ("length", "near_duplicates", "names_the_label", "quotes_the_text", "rationale_helps")
# Filter → its settings, each with a check of its value.
SETTINGS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "length": {
        "min_words": lambda v: type(v) is int and v >= 0,
        "max_words": lambda v: v is None or (type(v) is int and v >= 1),
    },
    "near_duplicates": {"similarity": lambda v: type(v) in (int, float) and 0 < v <= 1},
    "names_the_label": {"keep": lambda v: v in ("with", "without")},
    "quotes_the_text": {"at_least": lambda v: type(v) is int and v >= 0},
    "rationale_helps": {"model": lambda v: isinstance(v, str) and bool(v)},
}


def filter_problems(filters: Filters) -> list[str]:
    """All that is wrong with a study's list of filters."""
    problems = []
    for entry in filters:
        if not isinstance(entry, str) and len(entry) != 1:
            problems.append(f"{entry} is not a name, or one name with its settings, such as {{length: {{max_words: 60}}}}")
            continue
        name, settings = name_and_settings(entry)
        if name not in FILTERS:
            problems.append(unknown("filter", name, FILTERS))
            continue
        checks = SETTINGS.get(name, {})
        for key, value in settings.items():
            if key not in checks:
                known = ", ".join(checks) or "none"
                problems.append(f"{name} has no setting '{key}'; it has: {known}.{nearest(key, checks)}")
            elif not checks[key](value):
                problems.append(f"{name}: {key} cannot be {value!r}")
    return problems


def known_filters(filters: Filters) -> Filters:
    """The filters, or a ValueError that says all that is wrong with them."""
    if problems := filter_problems(filters):
        raise ValueError("; ".join(problems))
    return filters


def scorer_problems(filters: Filters, task: Task) -> list[str]:
    """Why the models that filters score rationales with cannot.

    Raises:
        CotdError: there is no such model.
    """
    scoring = [settings for name, settings in map(name_and_settings, filters) if name == rationale_helps.__name__]
    if not scoring:
        return []
    from cotd.students.rationale_gain import gain_problem

    models = dict.fromkeys(settings.get("model", SCORER) for settings in scoring)
    return [problem for model in models if (problem := gain_problem(model, task))]


# A list of filters as a study writes it: names, or names with settings.
Filters = Annotated[list[str | dict[str, dict[str, Any]]], AfterValidator(known_filters)]


def name_and_settings(entry: str | dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Name and settings of an entry of a study's list."""
    return (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))


def apply_filters(annotations: pd.DataFrame, filters: Filters, context: FilterContext) -> pd.DataFrame:
    """The annotations, quarantined where a filter takes them out."""
    shown = annotations[["example_id", "sample", "gold_conditioned", "label", "rationale"]]
    error = annotations["error"].astype(object)
    for name, settings in map(name_and_settings, filters):
        judged = error.isna() & (shown["rationale"] != "") if name in OF_RATIONALES else error.isna()
        rows = np.flatnonzero(judged)
        keep = FILTERS[name](shown.iloc[rows], context, **settings) if len(rows) else np.ones(0, dtype=bool)
        error.iloc[rows[~keep]] = FILTERED + name
    return annotations.assign(error=error)


def label_stands(error: pd.Series) -> np.ndarray:
    """(N,) whether an annotation's label may be learned, by its quarantine reason: there is none, or its rationale was filtered."""
    return (error.isna() | error.isin([FILTERED + name for name in OF_RATIONALES])).to_numpy(dtype=bool)


# Annotations in blocks that hold whole examples; each call starts from the first block.
Blocks = Callable[[], Iterator[pd.DataFrame]]


def filtered_blocks(
    blocks: Blocks, filters: Filters, context: Callable[[pd.DataFrame], FilterContext], spill_dir: Path | None = None
) -> Blocks:
    """`apply_filters` to annotations that do not fit in memory.

    All filters but `near_duplicates` look at an example, or at a rationale, at a time. For that one the rationales are written to
    disk, and some 70 bytes each are in memory.

    Args:
        context: of a block. spill_dir: see `cotd.data.spill.open_spill_file`.
    """
    names = [name_and_settings(entry)[0] for entry in filters]
    if near_duplicates.__name__ not in names:
        return lambda: (apply_filters(block, filters, context(block)) for block in blocks())
    position = names.index(near_duplicates.__name__)
    before = filtered_blocks(blocks, filters[:position], context, spill_dir)
    rationales = {kind: TextFile(spill_dir) for kind in (False, True)}
    for block in before():
        for kind, rows in rationales_by_kind(block).items():
            rationales[kind].add(block["rationale"].iloc[rows])
    settings = name_and_settings(filters[position])[1]
    repeats = {kind: near_duplicate_rows(texts, **settings) for kind, texts in rationales.items()}

    def after() -> Iterator[pd.DataFrame]:
        done = dict.fromkeys(repeats, 0)
        for block in before():
            error = block["error"].astype(object)
            for kind, rows in rationales_by_kind(block).items():
                repeated = repeats[kind][done[kind] : done[kind] + len(rows)]
                error.iloc[rows[repeated]] = FILTERED + near_duplicates.__name__
                done[kind] += len(rows)
            yield block.assign(error=error)

    return filtered_blocks(after, filters[position + 1 :], context, spill_dir)


def choose_annotations(
    annotations: pd.DataFrame, samples: int | None, filters: Filters | None, context: FilterContext
) -> pd.DataFrame:
    """Annotations as if the teacher had written only the first `samples` of them, and these filters had been applied.

    Args:
        samples: None keeps all. filters: None keeps the filters that were applied when the annotations were made.
    """
    if samples is not None:
        annotations = annotations[annotations["sample"] < samples].reset_index(drop=True)
    if filters is None:
        return annotations
    error = annotations["error"].astype(object)
    filtered = error.fillna("").str.startswith(FILTERED)
    return apply_filters(annotations.assign(error=error.mask(filtered, None)), filters, context)


def rationales_by_kind(annotations: pd.DataFrame) -> dict[bool, np.ndarray]:
    """Whether given gold → the positions of the usable rows of that kind that have a rationale."""
    usable = (annotations["error"].isna() & (annotations["rationale"] != "")).to_numpy(dtype=bool)
    given_gold = annotations["gold_conditioned"].to_numpy(dtype=bool)
    return {kind: np.flatnonzero(usable & (given_gold == kind)) for kind in (False, True)}


def rationales_naming_labels(annotations: pd.DataFrame, task: Task) -> np.ndarray:
    """(N,) whether each rationale contains its own label, see `Task.label_pattern`."""
    pattern = lru_cache(maxsize=1024)(lambda label: re.compile(task.label_pattern(label)))
    rows = zip(annotations["label"], annotations["rationale"], strict=True)
    return np.array([isinstance(label, str) and bool(pattern(label).search(text)) for label, text in rows], dtype=bool)
