"""Which annotations students learn from: named filters, applied in the order that a study lists them.

A filter is a function of the annotations that are usable so far; it says which of them stay. What it takes out is
quarantined by its name, and counted. A new filter is one function here, and a name in OF_RATIONALES if it judges rationales.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from cotd.data.spill import ScratchFile, TextFile
from cotd.errors import nearest
from cotd.tasks.base import Task
from cotd.utils.text import words

# A list of filters as a study writes it: names, or names with settings.
Filters = list[str | dict[str, dict[str, Any]]]

REASON = "filtered: "
# Of MinHash signatures: bands of two values each, and texts whose signatures are in memory at once.
BANDS, SIGNED_AT_ONCE = 16, 4096


@dataclass(frozen=True)
class FilterContext:
    """What a filter may look at besides the annotations.

    Attributes:
        gold: review id → its gold label, of the training reviews that have one.
    """

    task: Task
    gold: Mapping[str, str] | pd.Series


def agrees_with_gold(annotations: pd.DataFrame, context: FilterContext) -> np.ndarray:
    """Keeps labels that are gold's; without a gold label nothing is known against one."""
    gold = annotations["review_id"].map(context.gold)
    return (gold.isna() | (gold == annotations["label"])).to_numpy(dtype=bool)


def agrees_with_majority(annotations: pd.DataFrame, context: FilterContext) -> np.ndarray:
    """Keeps the samples whose label most samples of their review have (self-consistency, Wang et al. 2023).

    Of labels with equally many, the one that was sampled first counts as the majority.
    """
    key = ["review_id", "gold_conditioned"]
    if not annotations.duplicated(key).any():
        return np.ones(len(annotations), dtype=bool)
    votes = annotations.groupby([*key, "label"], sort=False)["sample"].agg(["size", "min"]).reset_index()
    majority = votes.sort_values([*key, "size", "min"], ascending=[True, True, False, True]).drop_duplicates(key)
    kept = annotations[key].merge(majority[[*key, "label"]], on=key, how="left")["label"]
    return kept.to_numpy() == annotations["label"].to_numpy()


def length(
    annotations: pd.DataFrame, context: FilterContext, *, min_words: int = 3, max_words: int | None = None
) -> np.ndarray:
    """Keeps rationales of `min_words` to `max_words` words."""
    count = annotations["rationale"].str.count(r"\S+").to_numpy()
    return (count >= min_words) & (count <= (max_words if max_words is not None else np.inf))


def near_duplicates(annotations: pd.DataFrame, context: FilterContext, *, similarity: float = 0.8) -> np.ndarray:
    """Keeps the first of the rationales that say nearly the same of different reviews, within a kind.

    Args:
        similarity: Jaccard index of their sets of word trigrams, in (0, 1], from which two count as duplicates.
    """
    keep = np.ones(len(annotations), dtype=bool)
    for _, rows in annotations.reset_index(drop=True).groupby("gold_conditioned"):
        keep[rows.index.to_numpy()] = ~near_duplicate_rows(rows["rationale"].tolist(), similarity)
    return keep


def names_the_label(
    annotations: pd.DataFrame, context: FilterContext, *, keep: Literal["with", "without"] = "with"
) -> np.ndarray:
    """Keeps rationales with their own label's word in them; `keep: without` those that do not give it away."""
    return rationales_naming_labels(annotations, context.task) == (keep == "with")


FILTERS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f for f in (agrees_with_gold, agrees_with_majority, length, near_duplicates, names_the_label)
}

# Those that judge rationales: they are shown none of the rows that have a label alone, which stay.
OF_RATIONALES = ("length", "near_duplicates", "names_the_label")


def apply_filters(
    annotations: pd.DataFrame, filters: Sequence[str | Mapping[str, Mapping[str, Any]]], context: FilterContext
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The annotations with what the filters take out quarantined, and how many that are, by filter.

    Args:
        filters: names, or one-key mappings from a name to its settings, as in a study's YAML.
    """
    counts: dict[str, int] = {}
    seen = annotations[["review_id", "sample", "gold_conditioned", "label", "rationale"]]
    error = annotations["error"].astype(object)
    for name, settings in map(named, filters):
        judged = error.isna() & (seen["rationale"] != "") if name in OF_RATIONALES else error.isna()
        usable = np.flatnonzero(judged)
        keep = FILTERS[name](seen.iloc[usable], context, **settings) if len(usable) else np.ones(0, dtype=bool)
        error.iloc[usable[~keep]] = REASON + name
        counts[name] = counts.get(name, 0) + int((~keep).sum())
    return annotations.assign(error=error), counts


# Annotations in blocks that hold whole reviews, from the first at each call.
Blocks = Callable[[], Iterator[pd.DataFrame]]


def filtered_blocks(
    blocks: Blocks,
    filters: Sequence[str | Mapping[str, Mapping[str, Any]]],
    context: Callable[[pd.DataFrame], FilterContext],
    spill_dir: Path | None = None,
) -> Blocks:
    """`apply_filters` to annotations that are not in memory at once.

    All filters but one look at a review at a time; for near-duplicates the rationales are written to disk, and some 50 bytes
    each are in memory.

    Args:
        context: of a block. near: see `cotd.data.spill.scratch_file`.
    """
    whole = next((k for k, entry in enumerate(filters) if named(entry)[0] == near_duplicates.__name__), None)
    if whole is None:
        return lambda: (apply_filters(block, filters, context(block))[0] for block in blocks())
    before = filtered_blocks(blocks, filters[:whole], context, spill_dir)
    rationales = {kind: TextFile(spill_dir) for kind in (False, True)}
    for block in before():
        for kind, rows in rationales_by_kind(block).items():
            rationales[kind].add(block["rationale"].iloc[rows])
    settings = named(filters[whole])[1]
    repeats = {kind: near_duplicate_rows(texts, spill_dir=spill_dir, **settings) for kind, texts in rationales.items()}

    def after() -> Iterator[pd.DataFrame]:
        done = dict.fromkeys(repeats, 0)
        for block in before():
            error = block["error"].astype(object)
            for kind, rows in rationales_by_kind(block).items():
                found = repeats[kind][done[kind] : done[kind] + len(rows)]
                error.iloc[rows[found]] = REASON + near_duplicates.__name__
                done[kind] += len(rows)
            yield block.assign(error=error)

    return filtered_blocks(after, filters[whole + 1 :], context, spill_dir)


def rationales_by_kind(annotations: pd.DataFrame) -> dict[bool, np.ndarray]:
    """Whether given gold → the places of the usable rows of that kind that have a rationale."""
    usable = (annotations["error"].isna() & (annotations["rationale"] != "")).to_numpy(dtype=bool)
    given_gold = annotations["gold_conditioned"].to_numpy(dtype=bool)
    return {kind: np.flatnonzero(usable & (given_gold == kind)) for kind in (False, True)}


def choose_annotations(
    annotations: pd.DataFrame,
    samples: int | None,
    filters: Sequence[str | Mapping[str, Mapping[str, Any]]] | None,
    task: Task,
    gold: Mapping[str, str],
) -> pd.DataFrame:
    """Annotations as if the teacher had written the first `samples` of them, and these filters had been applied.

    Args:
        samples: None keeps all. filters: None keeps what was filtered when the annotations were made.
    """
    if samples is not None:
        annotations = annotations[annotations["sample"] < samples].reset_index(drop=True)
    if filters is None:
        return annotations
    error = annotations["error"].astype(object)
    filtered = error.fillna("").str.startswith(REASON)
    return apply_filters(annotations.assign(error=error.mask(filtered, None)), filters, FilterContext(task, gold))[0]


def filter_problems(filters: Sequence[str | Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """All that is wrong with a study's list of filters."""
    problems = []
    for entry in filters:
        if not isinstance(entry, str) and len(entry) != 1:
            problems.append(f"{entry} is not a name, or one name with its settings, such as {{length: {{max_words: 60}}}}")
            continue
        name, settings = named(entry)
        if name not in FILTERS:
            problems.append(f"unknown filter '{name}'; known: {', '.join(FILTERS)}.{nearest(name, list(FILTERS))}")
            continue
        known = settings_of(name)
        for key, value in settings.items():
            if key not in known:
                problems.append(
                    f"{name} has no setting '{key}'; it has: {', '.join(known) or 'none'}.{nearest(key, list(known))}"
                )
            elif not known[key](value):
                problems.append(f"{name}: {key} cannot be {value!r}")
    return problems


def settings_of(name: str) -> dict[str, Callable[[Any], bool]]:
    """A filter's settings, each with a check of its value."""
    checks: dict[str, Callable[[Any], bool]] = {
        "min_words": lambda v: type(v) is int and v >= 0,
        "max_words": lambda v: v is None or (type(v) is int and v >= 1),
        "similarity": lambda v: type(v) in (int, float) and 0 < v <= 1,
        "keep": lambda v: v in ("with", "without"),
    }
    parameters = inspect.signature(FILTERS[name]).parameters.values()
    return {p.name: checks[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def named(entry: str | Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """(name, settings) of an entry of a study's list."""
    if isinstance(entry, str):
        return entry, {}
    return next(iter(entry.items()))


# --- what filters and the quality summary share -------------------------------------------------------------------


def rationales_naming_labels(annotations: pd.DataFrame, task: Task) -> np.ndarray:
    """Whether each rationale has the word of its own label in it, in whatever case, as a word of its own."""
    found = np.zeros(len(annotations), dtype=bool)
    labels = annotations["label"].to_numpy(dtype=object)
    for label in task.labels:
        rows = np.flatnonzero(labels == label)
        found[rows] = annotations["rationale"].iloc[rows].str.contains(task.label_pattern(label), regex=True).to_numpy(bool)
    return found


def near_duplicate_rows(texts: Sequence[str], similarity: float = 0.8, spill_dir: Path | None = None) -> np.ndarray:
    """Which texts nearly repeat an earlier one: the Jaccard index of their word trigrams is at least `similarity`.

    Candidates come from MinHash signatures of 32 values in 16 bands (Broder 1997; Leskovec, Rajaraman and Ullman,
    Mining of Massive Datasets, section 3.4): a pair with an index of 0.8 is missed once in 10^7, with 0.5 once in a
    hundred. A text is compared with the first one of each of its bands. Signatures are on disk, a band of them in memory.
    """
    bands = Bands(spill_dir)
    for start in range(0, len(texts), SIGNED_AT_ONCE):
        bands.add([texts[i] for i in range(start, min(start + SIGNED_AT_ONCE, len(texts)))])
    repeats = np.zeros(len(texts), dtype=bool)
    # With which text each was compared last: mostly it is the same in all bands.
    compared = np.full(len(texts), -1, dtype=np.int32)
    of = lru_cache(maxsize=1024)(lambda i: trigrams(texts[i]))
    for band in range(BANDS):
        earlier = first_equal(bands.read(band))
        for i in np.flatnonzero((earlier < np.arange(len(texts))) & ~repeats & (earlier != compared)).tolist():
            ours, others = of(i), of(int(earlier[i]))
            repeats[i], compared[i] = len(ours & others) >= similarity * len(ours | others), earlier[i]
    return repeats


class Bands:
    """MinHash signatures on disk, a band at a time: two 32-bit values side by side."""

    def __init__(self, spill_dir: Path | None = None):
        self._file = ScratchFile(spill_dir)
        self._sizes: list[int] = []  # of the blocks
        draw = np.random.default_rng(0)
        self._multiply, self._add = draw.integers(1, 2**31 - 1, size=(2, 2 * BANDS, 1), dtype=np.uint64)  # (32, 1) each

    def add(self, texts: Sequence[str]) -> None:
        signatures = np.empty((BANDS, len(texts)), dtype=np.uint64)
        for i, text in enumerate(texts):
            hashes = np.array(sorted(trigrams(text)), dtype=np.uint64)[None, :]  # (1, trigrams)
            smallest = ((self._multiply * hashes + self._add) % np.uint64(2**31 - 1)).min(axis=1)  # (32,)
            signatures[:, i] = smallest[::2] << np.uint64(32) | smallest[1::2]
        self._file.add(signatures.tobytes())
        self._sizes.append(len(texts))

    def read(self, band: int) -> np.ndarray:
        """(texts,) uint64."""
        found, start = [np.empty(0, dtype=np.uint64)], 0
        for size in self._sizes:
            found.append(np.frombuffer(self._file.read(start + 8 * size * band, 8 * size), dtype=np.uint64))
            start += 8 * size * BANDS
        return np.concatenate(found)


def first_equal(values: np.ndarray) -> np.ndarray:
    """(N,) int32: where each value is for the first time."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    first = np.empty(len(values), dtype=np.int32)
    first[order] = np.repeat(order[starts], np.diff(np.append(starts, len(ordered))))
    return first


def trigrams(text: str) -> set[int]:
    """32-bit hashes of a text's word trigrams, whatever the case and punctuation; of all of it where it is shorter."""
    all_words = words(text)
    return {zlib.crc32(" ".join(all_words[i : i + 3]).encode()) for i in range(max(1, len(all_words) - 2))}
