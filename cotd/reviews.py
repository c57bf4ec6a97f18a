"""The Review table: what a review is, how rows of any source become reviews, and how they are split.

A review table is a pandas DataFrame with the columns of `REVIEW_COLUMNS`: `id` (16 hex digits), `text`,
`label` (one of the task's labels, or None), `split` ("train", "validation" or "test").
"""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from cotd.errors import CotdError
from cotd.source_files import text_problem
from cotd.task import Task

REVIEW_COLUMNS = ["id", "text", "label", "split"]
SPLITS = ("train", "validation", "test")
# A text found in two splits stays in the one furthest to the right: what is tested on is never trained on.
PROTECTION = {"train": 0, "validation": 1, "test": 2}

_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """One line of plain text: HTML line breaks and entities resolved, runs of white space folded to one space.

    NUL bytes become spaces and lone surrogates U+FFFD: neither can be stored.
    """
    return _SPACE.sub(" ", whole_characters(html.unescape(_BREAK.sub(" ", text)).replace("\x00", " "))).strip()


def whole_characters(text: str) -> str:
    """A text that has a UTF-8 form: pairs of surrogates are joined, lone ones replaced by U+FFFD."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def review_id(dataset: str, text: str) -> str:
    """A stable id: 16 hex digits of the SHA-256 of the dataset's name and the case-folded cleaned text."""
    return hashlib.sha256(f"{dataset}\n{clean_text(text).casefold()}".encode()).hexdigest()[:16]


def unit_interval(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone: the same on every machine, so splits never move."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


@dataclass
class Reviews:
    """A source's reviews, and what became of the rows that are not among them.

    Attributes:
        table: the Review table, ordered by a hash of the id within each split, so that the first n rows of a
            split are a fixed pseudo-random sample and smaller samples are nested in larger ones.
        quarantine: the rows left out, with columns `text`, `label`, `split`, `reason`.
        counts: rows read, repeats dropped, quarantined by reason, kept by split.
    """

    table: pd.DataFrame
    quarantine: pd.DataFrame
    counts: dict[str, int] = field(default_factory=dict)

    def split(self, name: str) -> pd.DataFrame:
        return self.table[self.table["split"] == name].reset_index(drop=True)

    def digest(self) -> str:
        """Content digest: changes when any id, label or split does."""
        lines = self.table[["id", "label", "split"]].fillna("").agg("\t".join, axis=1)
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def build_reviews(
    rows: pd.DataFrame,
    dataset: str,
    task: Task,
    test_share: float = 0.2,
    validation_share: float = 0.1,
) -> Reviews:
    """Turns a source's rows into reviews.

    Args:
        rows: columns `text`, and optionally `label`, `split`, `group` (texts of one group, a movie's say, never fall into
            two splits), `problem` (why a row cannot be used) and `line` (such a row as it was). Rows without a split are
            carved by a hash of their group, or of their text, into test, validation and train; if a source has test rows
            but no validation rows, validation is carved from its train rows in the same way.
        test_share, validation_share: shares of the rows to carve.

    Returns:
        Reviews: equal texts (after cleaning, whatever the case) are one review. Repeats are dropped and
        counted; repeats whose labels differ, rows without a text and labels outside the task's set are quarantined; a
        text in two splits stays in the one that protects the test.

    Raises:
        CotdError: no review is left.
    """
    frame = pd.DataFrame({"text": rows["text"]})
    for column in ("label", "split", "group", "problem", "line"):
        frame[column] = rows.get(column)
    frame = frame.astype(object).where(frame.notna(), None).reset_index(drop=True)
    n_read = len(frame)

    raw_labels, raw_texts, problems = list(frame["label"]), list(frame["text"]), list(frame["problem"])
    frame["text"] = [clean_text(t) if isinstance(t, str) else "" for t in frame["text"]]
    frame["label"] = pd.Series([task.parse_label(v) for v in raw_labels], dtype=object)
    frame["id"] = [review_id(dataset, t) for t in frame["text"]]
    frame["split"] = assign_splits(frame, test_share, validation_share)

    reasons: list[str | None] = [None] * n_read
    for i, (text, raw, label) in enumerate(zip(frame["text"], raw_labels, frame["label"], strict=True)):
        if not text:
            reasons[i] = problems[i] or text_problem(raw_texts[i]) or "empty text"
        elif raw is not None and label is None:
            reasons[i] = f"label {str(raw)[:40]!r} is not one of {', '.join(task.labels)}"
    frame["reason"] = pd.Series(reasons, dtype=object)

    sound = frame[frame["reason"].isna()]
    labels_per_id = sound[sound["label"].notna()].groupby("id")["label"].nunique()
    contradictory = set(labels_per_id[labels_per_id > 1].index)
    frame.loc[frame["reason"].isna() & frame["id"].isin(contradictory), "reason"] = "repeated with different labels"

    frame["text"] = frame["text"].where(frame["line"].isna(), frame["line"])
    quarantine = frame[frame["reason"].notna()][["text", "label", "split", "reason"]].reset_index(drop=True)
    sound = frame[frame["reason"].isna()].copy()
    # Within a text's copies: the most protected split first, a labelled copy before an unlabelled one.
    sound["order"] = [-PROTECTION[s] * 2 + (label is None) for s, label in zip(sound["split"], sound["label"], strict=True)]
    table = sound.sort_values(["order"], kind="stable").drop_duplicates("id")
    n_repeats = len(sound) - len(table)

    table["rank"] = [unit_interval(f"order\n{i}") for i in table["id"]]
    table = table.sort_values(["split", "rank"])[REVIEW_COLUMNS].reset_index(drop=True)
    if table.empty:
        reasons_seen = "; ".join(f"{n} rows: {r}" for r, n in Counter(quarantine["reason"]).most_common(3))
        raise CotdError(
            f"{dataset}: no usable review among {n_read} rows"
            + (f" ({reasons_seen})" if reasons_seen else "")
            + ". Check the file and the column mapping (data.columns)."
        )
    counts = {"rows": n_read, "repeats": n_repeats, "quarantined": len(quarantine)}
    counts |= {f"kept_{s}": int((table["split"] == s).sum()) for s in SPLITS}
    return Reviews(table=table, quarantine=quarantine, counts=counts)


def assign_splits(frame: pd.DataFrame, test_share: float, validation_share: float) -> pd.Series:
    """A split for each row of `frame` (columns `id`, `group`, `split`); given splits are kept."""
    keys = [g if g is not None else i for g, i in zip(frame["group"], frame["id"], strict=True)]
    position = [unit_interval(f"split\n{k}") for k in keys]
    has_given = frame["split"].notna().any()
    carve_validation = "validation" not in set(frame["split"].dropna())
    splits: list[str] = []
    for given, u in zip(frame["split"], position, strict=True):
        if given is None and not has_given:
            carved = "test" if u < test_share else "validation" if u < test_share + validation_share else "train"
            splits.append(carved)
        elif given in (None, "train") and carve_validation and u < validation_share:
            splits.append("validation")
        else:
            splits.append(given or "train")
    return pd.Series(splits, index=frame.index, dtype=object)


def limit_rows(reviews: Reviews, limits: dict[str, int | None]) -> Reviews:
    """The first `limits[split]` reviews of each split (all where None): nested, the same on every machine."""
    parts = [reviews.split(s).head(n) if (n := limits.get(s)) is not None else reviews.split(s) for s in SPLITS]
    table = pd.concat(parts, ignore_index=True)
    counts = reviews.counts | {f"kept_{s}": len(p) for s, p in zip(SPLITS, parts, strict=True)}
    return Reviews(table=table, quarantine=reviews.quarantine, counts=counts)
