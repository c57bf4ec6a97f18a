"""Rows: what of each row of a source is kept until the source has been read, and why a row cannot be used."""

from __future__ import annotations

import ast
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cotd.data.cleaning import clean_text
from cotd.data.config import SPLITS
from cotd.data.files import text_problem
from cotd.data.spill import Column, TextFile
from cotd.data.table import NONE, encode, encode_ids, in_blocks
from cotd.tasks.base import Task, cell_text

# What is kept of a row: `given` and `carved` are splits by their codes, `low` says whether it goes to validation if that alone is
# carved, `group` and `spelling` are hashes.
ROW = np.dtype([
    ("id", "u8"), ("label", "i4"), ("given", "i1"), ("carved", "i1"), ("low", "?"), ("group", "u8"), ("spelling", "u8"), ("reason", "i4"),
])  # fmt: skip
NO_GROUP = 0
TRAIN, VALIDATION, TEST = (SPLITS.index(name) for name in ("train", "validation", "test"))
BAD_CHOICES = "its options are not a list of at least two different ones"
MISSING_WORDS = {"nan", "none", "null", "n/a", "<na>", "nat"}  # what programs write for a cell that is missing
NO_LABEL = "-1"  # how hub data sets write that a row of the test has no label
# More labels than this fraction that are not the task's mean a wrong mapping; fewer are bad rows.
MAX_WRONG = 0.05
MAX_UNKNOWN = 1000  # different labels outside the task that are counted by name


def example_id(text: str, choices: Sequence[str] | None = None) -> str:
    """A stable id: 16 hex digits of the SHA-256 of the case-folded cleaned text and the options, wherever they are from."""
    lines = [clean_text(text).casefold(), *(option.casefold() for option in choices or ())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def hash_number(key: str) -> int:
    """A number of 64 bits that depends on `key` alone: the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def unit_interval(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone, so that splits never move."""
    return hash_number(key) / 2**64


def parse_choices(value: Any) -> list[str] | None:
    """A row's own options: a list, or one as JSON or Python write it, or a mapping whose `text` is one, as on the hub.

    None if it is something else, has fewer than two options, an empty one, or one twice.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return None
    if isinstance(value, Mapping):
        value = value.get("text")
    if not isinstance(value, (list, tuple, np.ndarray)):
        return None
    options = [clean_text(cell_text(option) or "") for option in value]
    distinct = len({option.casefold() for option in options}) == len(options)
    return options if len(options) >= 2 and all(options) and distinct else None


def hash_codes(names: Sequence[str]) -> np.ndarray:
    """(N,) uint64 a number for each name, and NO_GROUP for an empty one."""
    hashes = (hashlib.blake2b(name.encode(), digest_size=8).digest() if name else bytes(8) for name in names)
    return np.frombuffer(b"".join(hashes), dtype=np.uint64)


class RowReader:
    """What is kept of a source's rows: their texts on disk, and some bytes of each.

    Attributes:
        texts: each row's text, cleaned, or its line if the row is bad.
        choices: each row's own options as JSON; None if the task has the same for all.
        groups: each row's group, empty where it has none. grouped: whether any has one.
        given: the splits that any row is given, by their codes.
        rows: all else that is known of each, see ROW.
        reasons: why rows cannot be used → its code.
    """

    def __init__(self, dataset: str, task: Task, test_share: float, validation_share: float, spill_dir: Path | None):
        self.dataset, self.task, self.texts = dataset, task, TextFile(spill_dir)
        self.choices = TextFile(spill_dir) if task.needs_choices else None
        self.groups, self.grouped = TextFile(spill_dir), False
        self.rows, self.given = Column(ROW, spill_dir), set[int]()
        self.shares = test_share, validation_share
        self.reasons: dict[str, int] = {}
        self.labelled = self.wrong = self.minus_one = self.missing_words = 0
        self.unknown_labels: Counter[str] = Counter()
        self._codes: dict[str | None, int] = {None: NONE} | {label: code for code, label in enumerate(task.labels)}

    def add_all(self, blocks: Iterable[pd.DataFrame]) -> None:
        """Reads blocks of rows, in parts of bounded size."""
        for block in blocks:
            for part in in_blocks(len(block)):
                self.add(block.iloc[part])

    def add(self, rows: pd.DataFrame) -> None:
        """Reads some rows, see `build_examples`."""
        frame = pd.DataFrame({"text": rows["text"]})
        for column in ("label", "split", "group", "problem", "line", "choices"):
            frame[column] = rows.get(column)
        frame = frame.astype(object).where(frame.notna(), None)
        raw_texts, raw_labels, given, raw_groups, problems, lines, raw_choices = (list(frame[column]) for column in frame)
        texts = [clean_text(t) if isinstance(t, str) else "" for t in raw_texts]
        choices = [parse_choices(c) for c in raw_choices] if self.task.needs_choices else [None] * len(texts)
        ids = [example_id(t, c) for t, c in zip(texts, choices, strict=True)]
        groups = ["" if g is None else cell_text(g) or "" for g in raw_groups]
        labels = [self.task.parse(v, c) for v, c in zip(raw_labels, choices, strict=True)]
        reasons = np.full(len(texts), NONE, dtype=np.int32)
        for i, (text, raw, label) in enumerate(zip(texts, raw_labels, labels, strict=True)):
            self.missing_words += text.casefold() in MISSING_WORDS
            if not text:
                reasons[i] = self.reason(problems[i] or text_problem(raw_texts[i]) or "empty text")
            elif self.task.needs_choices and choices[i] is None:
                reasons[i] = self.reason("no options" if raw_choices[i] is None else BAD_CHOICES)
            elif label is None and self.task.labels and cell_text(raw) == NO_LABEL:
                self.minus_one += 1
            elif raw is not None and str(raw).strip():
                self.labelled += 1
                if label is None:
                    self.wrong += 1
                    self.unknown_labels[str(raw)[:40]] += len(self.unknown_labels) < MAX_UNKNOWN
                    reasons[i] = self.reason(f"label {str(raw)[:40]!r} is not {self.task.expected(choices[i])}")
        if self.choices is not None:
            self.choices.add(json.dumps(c or [], ensure_ascii=False) for c in choices)
        self.texts.add(text if line is None else line for text, line in zip(texts, lines, strict=True))

        self.groups.add(groups)
        test, validation = self.shares
        u = np.array([unit_interval(f"split\n{g or i}") for i, g in zip(ids, groups, strict=True)])
        carved = np.select([u < test, u < test + validation], [TEST, VALIDATION], TRAIN).astype(np.int8)
        for label in labels:
            self._codes.setdefault(label, len(self._codes) - 1)
        read = np.empty(len(texts), dtype=ROW)
        read["id"], read["label"] = encode_ids(ids), [self._codes[label] for label in labels]
        read["given"], read["carved"], read["low"] = encode(SPLITS, given), carved, u < validation
        read["group"], read["reason"] = hash_codes(groups), reasons
        read["spelling"] = hash_codes(["\n".join([t, g, *(c or ())]) for t, g, c in zip(texts, groups, choices, strict=True)])
        self.rows.add(read)
        self.given |= {split for split in np.unique(read["given"]).tolist() if split != NONE}
        self.grouped |= any(groups)

    def reason(self, text: str) -> int:
        """The code of a reason."""
        return self.reasons.setdefault(text, len(self.reasons))

    def label_problem(self) -> str | None:
        """What is wrong if so many labels are not the task's that the mapping must be, and not a row here and there; or None."""
        if self.wrong <= MAX_WRONG * self.labelled:
            return None
        shown = ", ".join(f"'{label}' ({n:,} rows)" for label, n in self.unknown_labels.most_common(5))
        advice = "Name every label in task.labels, with its other spellings, as in {positive: [1, pos]}"
        if not self.task.labels:
            advice = "Check data.columns"
        return (
            f"{self.dataset}: {self.wrong:,} of {self.labelled:,} labels are not {self.task.expected()}: {shown}. {advice}; "
            "or name the right column, data.columns.label (null: no gold labels)."
        )

    def notes(self) -> list[str]:
        """What was decided, and what is odd, about labels and texts."""
        notes = []
        if self.minus_one:
            notes.append(
                f"warning: {self.minus_one:,} rows have the label -1, which is read as no label. If it is one, name it in task.labels"
            )
        if self.missing_words:
            notes.append(
                f"warning: {self.missing_words:,} rows have 'nan', 'None' or the like for a text, as if it were missing"
            )
        return notes

    def names(self) -> tuple[str, ...]:
        """Every answer, by its code."""
        return tuple(label for label in self._codes if label is not None)
