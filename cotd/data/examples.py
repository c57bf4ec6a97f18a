"""The Review table: what a review is, how rows of any source become reviews, and how they are split.

A review has an `id` (16 hex digits), a `text`, a `label` (one of the task's, or None) and a `split` ("train", "validation"
or "test"). Of all of a source's rows some 30 bytes each are in memory; texts are on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from cotd.data.cleaning import clean_text
from cotd.data.files import BLOCK, text_problem
from cotd.data.spill import TextFile
from cotd.data.table import NONE, SPLITS, ExampleTable, QuarantinedRows, decode_ids, encode_ids
from cotd.errors import CotdError
from cotd.tasks.base import Task

# A text found in two splits stays in the one furthest to the right: what is tested on is never trained on.
PROTECTION = {"train": 0, "validation": 1, "test": 2}
CONTRADICTORY = "repeated with different labels"


def review_id(dataset: str, text: str) -> str:
    """A stable id: 16 hex digits of the SHA-256 of the dataset's name and the case-folded cleaned text."""
    return hashlib.sha256(f"{dataset}\n{clean_text(text).casefold()}".encode()).hexdigest()[:16]


def unit_interval(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone: the same on every machine, so splits never move."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


@dataclass
class Examples:
    """A source's reviews, and what became of the rows that are not among them.

    Attributes:
        rows: the reviews, ordered by a hash of the id within each split, so that the first n rows of a split are a fixed
            pseudo-random sample and smaller samples are nested in larger ones.
        quarantined: the rows left out.
        counts: rows read, repeats dropped, quarantined by reason, kept by split.
    """

    rows: ExampleTable
    quarantined: QuarantinedRows
    counts: dict[str, int] = field(default_factory=dict)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The Review table with its texts, in memory."""
        return self.rows.frame()

    @cached_property
    def quarantine(self) -> pd.DataFrame:
        """The rows left out, with columns `text`, `label`, `split`, `reason`, in memory."""
        return self.quarantined.frame()

    def split(self, name: str) -> pd.DataFrame:
        """A split's part of the Review table, in memory."""
        return self.rows.split(name).frame()

    def digest(self) -> str:
        """Content digest: changes when any id, label or split does."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return self.rows.digest()


def build_examples(
    rows: pd.DataFrame | Iterable[pd.DataFrame],
    dataset: str,
    task: Task,
    test_share: float = 0.2,
    validation_share: float = 0.1,
    spill_dir: Path | None = None,
) -> Examples:
    """Turns a source's rows into reviews.

    Args:
        rows: whole or in blocks, with columns `text`, and optionally `label`, `split`, `group` (texts of one group, a movie's
            say, never fall into two splits), `problem` (why a row cannot be used) and `line` (such a row as it was). Rows
            without a split are carved by a hash of their group, or of their text, into test, validation and train; if a
            source has test rows but no validation rows, validation is carved from its train rows in the same way.
        test_share, validation_share: shares of the rows to carve.
        spill_dir: a folder on whose disk the texts are kept, see `cotd.data.spill.scratch_file`.

    Returns:
        Examples: equal texts (after cleaning, whatever the case) are one review. Repeats are dropped and
        counted; repeats whose labels differ, rows without a text and labels outside the task's set are quarantined; a
        text in two splits stays in the one that protects the test.

    Raises:
        CotdError: no review is left.
    """
    read = RowReader(dataset, task, test_share, validation_share, TextFile(spill_dir))
    for block in [rows] if isinstance(rows, pd.DataFrame) else rows:
        for start in range(0, len(block), BLOCK):
            read.add(block.iloc[start : start + BLOCK])
    ids, labels, given, carved, low, reasons = read.columns()
    splits = assign_splits(given, carved, low)
    kept, contradictory = unique_rows(ids, labels, splits, np.flatnonzero(reasons == NONE))
    n_sound = int((reasons == NONE).sum()) - len(contradictory)
    reasons[contradictory] = read.reason(CONTRADICTORY)

    aside = np.flatnonzero(reasons != NONE)
    quarantined = QuarantinedRows(
        labels[aside], splits[aside], aside, reasons[aside], read.texts, task.labels, list(read.reasons)
    )
    if not len(kept):
        reasons_seen = "; ".join(f"{n} rows: {r}" for r, n in quarantined.counts().most_common(3))
        raise CotdError(
            f"{dataset}: no usable review among {len(ids)} rows"
            + (f" ({reasons_seen})" if reasons_seen else "")
            + ". Check the file and the column mapping (data.columns)."
        )
    alphabetical = np.argsort(np.argsort(SPLITS)).astype(np.int8)
    order = kept[np.lexsort((ranks(ids[kept]), alphabetical[splits[kept]]))]
    table = ExampleTable(ids[order], labels[order], splits[order], order.astype(np.uint32), read.texts, task.labels)
    counts = {"rows": len(ids), "repeats": n_sound - len(kept), "quarantined": len(aside)}
    counts |= {f"kept_{name}": int((table.splits == s).sum()) for s, name in enumerate(SPLITS)}
    return Examples(table, quarantined, counts)


class RowReader:
    """What is kept of a source's rows: their texts on disk, and of each row some bytes.

    Attributes:
        texts: each row's text, cleaned, or the line that it was.
        reasons: why rows cannot be used → the number that stands for it.
    """

    def __init__(self, dataset: str, task: Task, test_share: float, validation_share: float, texts: TextFile):
        self.dataset, self.task, self.texts = dataset, task, texts
        self.shares = test_share, validation_share
        self.reasons: dict[str, int] = {}
        self._blocks: list[tuple[np.ndarray, ...]] = []

    def add(self, rows: pd.DataFrame) -> None:
        """Reads some rows, see `build_examples`."""
        frame = pd.DataFrame({"text": rows["text"]})
        for column in ("label", "split", "group", "problem", "line"):
            frame[column] = rows.get(column)
        frame = frame.astype(object).where(frame.notna(), None)
        raw_texts, raw_labels, given, groups, problems, lines = (list(frame[column]) for column in frame)
        texts = [clean_text(t) if isinstance(t, str) else "" for t in raw_texts]
        ids = [review_id(self.dataset, t) for t in texts]
        labels = [self.task.parse_label(v) for v in raw_labels]
        reasons = [NONE] * len(texts)
        for i, (text, raw, label) in enumerate(zip(texts, raw_labels, labels, strict=True)):
            if not text:
                reasons[i] = self.reason(problems[i] or text_problem(raw_texts[i]) or "empty text")
            elif raw is not None and label is None:
                reasons[i] = self.reason(f"label {str(raw)[:40]!r} is not one of {', '.join(self.task.labels)}")
        self.texts.add(text if line is None else line for text, line in zip(texts, lines, strict=True))

        test, validation = self.shares
        u = np.array([unit_interval(f"split\n{i if g is None else g}") for i, g in zip(ids, groups, strict=True)])
        carved = np.where(u < test, SPLITS.index("test"), np.where(u < test + validation, SPLITS.index("validation"), 0))
        columns = (
            encode_ids(ids), encode_labels(self.task.labels, labels), encode_labels(SPLITS, given), carved.astype(np.int8),
            u < validation, np.array(reasons, dtype=np.int32),
        )  # fmt: skip
        self._blocks.append(columns)

    def reason(self, text: str) -> int:
        return self.reasons.setdefault(text, len(self.reasons))

    def columns(self) -> tuple[np.ndarray, ...]:
        """Of all rows: ids, labels, given splits, the splits that a hash would carve, whether it would carve validation from
        train, and reasons."""
        types = (np.uint64, np.int8, np.int8, np.int8, bool, np.int32)
        blocks, self._blocks = [*self._blocks, tuple(np.empty(0, dtype=t) for t in types)], []
        return tuple(np.concatenate([block[k] for block in blocks]) for k in range(len(types)))


def encode_labels(names: tuple[str, ...], values: list[str | None]) -> np.ndarray:
    """Names as their places among `names`, (N,) int8."""
    places = {None: NONE} | {name: place for place, name in enumerate(names)}
    return np.array([places[v] for v in values], dtype=np.int8)


def assign_splits(given: np.ndarray, carved: np.ndarray, low: np.ndarray) -> np.ndarray:
    """A split for each row; given splits are kept.

    Args:
        given: (N,) places in SPLITS, or NONE. carved: (N,) where no row has one. low: (N,) whether a row of train goes to
            validation, where no row is given that.
    """
    if (given == NONE).all():
        return carved
    splits = np.where(given == NONE, np.int8(SPLITS.index("train")), given)
    validation = SPLITS.index("validation")
    if not (given == validation).any():
        splits[(splits == SPLITS.index("train")) & low] = validation
    return splits


def unique_rows(ids: np.ndarray, labels: np.ndarray, splits: np.ndarray, sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the row that stands for each text, the rows of texts whose labels differ), of the rows of `sound`.

    Of a text's copies the most protected split counts first, then a labelled copy before an unlabelled one, then the first.
    """
    if not len(sound):
        return sound, sound
    protection = np.array([PROTECTION[name] for name in SPLITS], dtype=np.int8)
    rank = (labels == NONE) - 2 * protection[splits]
    order = sound[np.lexsort((rank[sound], ids[sound]))]
    starts = np.flatnonzero(np.concatenate([[True], ids[order[1:]] != ids[order[:-1]]]))
    found = labels[order]
    lowest = np.minimum.reduceat(np.where(found == NONE, np.int8(127), found), starts)
    differ = np.maximum.reduceat(found, starts) > lowest
    sizes = np.diff(np.append(starts, len(order)))
    return order[starts[~differ]], order[np.repeat(differ, sizes)]


def ranks(ids: np.ndarray) -> np.ndarray:
    """(N,) numbers in [0, 1), by which reviews are ordered."""
    found = np.empty(len(ids))
    for start in range(0, len(ids), BLOCK):
        block = decode_ids(ids[start : start + BLOCK])
        found[start : start + BLOCK] = [unit_interval(f"order\n{i}") for i in block]
    return found


def limit_rows(reviews: Examples, limits: dict[str, int | None]) -> Examples:
    """The first `limits[split]` reviews of each split (all where None): nested, the same on every machine."""
    rows = reviews.rows
    parts = [np.flatnonzero(rows.splits == s)[: limits.get(name)] for s, name in enumerate(SPLITS)]
    counts = reviews.counts | {f"kept_{name}": len(part) for name, part in zip(SPLITS, parts, strict=True)}
    return Examples(rows.take(np.concatenate(parts)), reviews.quarantined, counts)


def select_fraction(train: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """The first `fraction` of the training reviews, at least one.

    The Review table's order is a hash of the id, so this is a pseudo-random sample, the same for every method and
    seed, and smaller fractions are nested in larger ones.
    """
    return train.head(fraction_rows(len(train), fraction))


def fraction_rows(rows: int, fraction: float) -> int:
    """How many of so many training reviews a fraction stands for."""
    return max(1, round(rows * fraction))
