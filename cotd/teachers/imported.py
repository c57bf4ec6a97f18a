"""Answers that are read: a file of labels and rationales that a language model wrote already becomes a study's annotations.

A row of the file belongs to the review with its text, as reviews are told apart: after cleaning, whatever the case.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cotd.data.cleaning import clean_text, replace_surrogates
from cotd.data.config import DataConfig
from cotd.data.examples import Examples, review_id
from cotd.data.files import text_problem
from cotd.data.sources import dataset_name, read_mapped
from cotd.data.spill import SortedRows
from cotd.data.table import NONE, SPLITS, decode
from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.teachers.annotations import annotation_row, tidy_rationale
from cotd.teachers.config import TeacherConfig
from cotd.teachers.output import (
    ImportedRows,
    TeacherOutput,
    annotation_rows,
    explained_reviews,
    rationale_rows,
    test_table,
    with_shares_of_votes,
)
from cotd.teachers.store import completion
from cotd.teachers.teacher import Teacher

KEY = "teacher.answers.columns"
CELLS = ("text", "label", "rationale", "gold_rationale", "label_probability", "problem", "line")
NO_REVIEW = "no review of the study has this text"
NO_GOLD = "no gold label, for which a rationale could be given"
NOT_GOLD = "a rationale of another label than gold's"
# What may stand around a label: quotes, brackets, a full stop. Not a minus sign: -1 is no 1.
AROUND = " \t\r\n.,:;!\"'`*_()[]{}“”‘’«»"
QUARANTINED = pa.schema(
    {name: pa.string() for name in ("review_id", "file")}
    | {"row": pa.int64()}  # of the file, from 1, without a header
    | {name: pa.string() for name in ("text", "label", "rationale", "reason")}
)
# Labels outside the task's of which each is counted by itself: a whole column may be the wrong one.
MOST_LABELS = 1000
# An answer of which nothing but its text is known.
WRITTEN = completion("", prompt_tokens=0, output_tokens=0)


def answers_digest(data: DataConfig, config: TeacherConfig) -> str:
    """Content digest of the files of answers.

    Raises:
        CotdError: there is no such file.
    """
    content = hashlib.sha256()
    for path in answer_files(data, config):
        with open(Path(path).expanduser(), "rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()[:16]


def answer_files(data: DataConfig, config: TeacherConfig) -> list[str]:
    """The files of answers.

    Raises:
        CotdError: one is missing.
    """
    assert config.answers is not None
    files = config.answers.files(data)
    if problems := [
        f"teacher.answers.source: no file '{path}' (looked in {Path(path).expanduser().absolute().parent})."
        for path in files
        if not Path(path).expanduser().is_file()
    ]:
        raise CotdError(*problems)
    return files


def answer_blocks(path: str, data: DataConfig, config: TeacherConfig) -> Iterator[pd.DataFrame]:
    """A file's rows with the columns of CELLS that it has, a block at a time.

    Raises:
        CotdError: it cannot be read, or lacks columns that are named: all of them at once, with those that it has.
    """
    assert config.answers is not None
    columns = config.answers.columns
    return read_mapped(path, columns.model_copy(update={"text": columns.text or data.columns.text}), KEY)


def check_answers(data: DataConfig, config: TeacherConfig) -> None:
    """Looks at the beginning of each file, before the reviews are read.

    Raises:
        CotdError: what `answer_files` and `answer_blocks` raise.
    """
    problems: list[str] = []
    for path in answer_files(data, config):
        try:
            next(answer_blocks(path, data, config))
        except CotdError as error:
            problems += error.problems
    if problems:
        raise CotdError(*problems)


def reading_teacher(data: DataConfig, config: TeacherConfig) -> Teacher:
    """A teacher that is asked nothing; its revision is the content of its answers."""
    revision = ", ".join(filter(None, [config.revision, f"answers {answers_digest(data, config)}"]))
    return Teacher(config.model, revision, config)


def read_answers(data: DataConfig, teacher: Teacher, reviews: Examples, task: Task) -> TeacherOutput:
    """The annotations of a file of answers: of training reviews rows, of test reviews labels to score the teacher by.

    A review's rows are its samples, in the file's order. Labels count whatever their case and the punctuation around them.
    Without a column of probabilities a label's is the share of its review's samples that have it, as in `chain_of_thought`.

    Raises:
        CotdError: the file cannot be read; no row is a review's; none is of use for a training review.
    """
    files = answer_files(data, teacher.config)
    reader = ImportedReader(files, data, teacher, reviews, task)
    for path in files:
        for block in answer_blocks(path, data, teacher.config):
            reader.add(block, path)
    return reader.output()


class ImportedReader:
    """Joins rows of answers to reviews. Some twenty bytes of memory for each review, however many rows there are."""

    def __init__(self, files: list[str], data: DataConfig, teacher: Teacher, reviews: Examples, task: Task):
        assert teacher.config.answers is not None
        self.config, self.columns = teacher.config, teacher.config.answers.columns
        self.files, self.data, self.reviews, self.task = files, data, reviews, task
        self.dataset = dataset_name(data)
        self.origin = {"teacher": teacher.name, "revision": teacher.revision, "prompt_hash": None}
        voting = self.columns.label is not None and self.columns.label_probability is None
        self.annotations = annotation_rows(teacher, reviews, *([with_shares_of_votes] if voting else []))
        table, spill_dir = reviews.rows, reviews.rows.texts.spill_dir
        explained = explained_reviews(teacher.config, reviews)
        self.explained = np.isin(table.numbers, explained.numbers)
        self.rationales = rationale_rows(explained)
        self.aside = SortedRows(QUARANTINED, ["review_id", "file", "row", "reason"], len(table), spill_dir)
        # Of each review: how many rows are its, and the first label among them with its probability.
        self.found = np.zeros(len(table), dtype=np.int32)
        self.said = np.full(len(table), NONE, dtype=np.int8)
        self.probability = np.full(len(table), np.nan)
        self.rows = self.matched = self.usable = 0
        self.reasons: Counter[str] = Counter()
        self.other_labels: Counter[str] = Counter()
        self.first_text = ""
        self._file, self._row = "", 0

    def add(self, block: pd.DataFrame, file: str) -> None:
        """Reads some rows of a file, those of one file in their order.

        Args:
            block: with the columns of CELLS that are there.
        """
        if file != self._file:
            self._file, self._row = file, 0
        frame = block.astype(object).where(block.notna(), None)
        columns = [list(frame[name]) if name in frame else [None] * len(frame) for name in CELLS]
        texts = [clean_text(text) if isinstance(text, str) else "" for text in columns[0]]
        ids = [review_id(self.dataset, text) for text in texts]
        places = self.reviews.rows.positions(ids).tolist()
        for i, text, place, *values in zip(ids, texts, places, *columns, strict=True):
            self._row += 1
            self.rows += 1
            self.first_text = self.first_text or text
            cells = dict(zip(CELLS, values, strict=True))
            problem = cells["problem"] or text_problem(cells["text"]) or (None if text else "empty text")
            if problem or place == NONE:
                self._quarantine(i, cells, cells["rationale"], problem or NO_REVIEW)
                continue
            self.matched += 1
            if self.reviews.rows.splits[place] == SPLITS.index("train"):
                self._annotate(i, place, cells)
            else:
                self._measure(i, place, cells)
            self.found[place] += 1

    def _annotate(self, i: str, place: int, cells: dict[str, Any]) -> None:
        """Makes annotations of a training review's answer."""
        sample, gold = int(self.found[place]), self.reviews.rows.label(place)
        label, probability, problem = self._label(cells)
        rows = []
        if self.columns.label:
            rationale, unread = text_of(cells["rationale"]) if self.columns.rationale else (None, None)
            reason = problem or unread
            rows.append(annotation_row(i, sample, False, label, probability, rationale, WRITTEN, self.origin, error=reason))
        if self.columns.gold_rationale and self.config.gold_conditioned and gold:
            rationale, unread = text_of(cells["gold_rationale"])
            shared = self.columns.gold_rationale == self.columns.rationale
            reason = (problem or (NOT_GOLD if label != gold else None)) if shared else None
            rows.append(annotation_row(i, sample, True, gold, None, rationale, WRITTEN, self.origin, error=reason or unread))
        if not rows:
            self._quarantine(i, cells, cells["gold_rationale"], NO_GOLD)
        for row in rows:
            self.annotations.add(row)
            self.usable += row["error"] is None
        for reason, rationale in {row["error"]: row["rationale"] for row in rows if row["error"]}.items():
            self._quarantine(i, cells, rationale, reason)

    def _measure(self, i: str, place: int, cells: dict[str, Any]) -> None:
        """Notes the label of a held-out review's answer, and its rationale where it is wanted."""
        if not self.columns.label:
            return
        label, probability, problem = self._label(cells)
        if label and self.said[place] == NONE:
            self.said[place] = self.task.labels.index(label)
            self.probability[place] = np.nan if probability is None else probability
        if self.explained[place] and not self.found[place]:
            rationale, unread = text_of(cells["rationale"])
            rationale, short = tidy_rationale(rationale, "stop")
            self.rationales.add({"review_id": i, "rationale": "" if unread or short else rationale})
            problem = problem or unread or short
        if problem:
            self._quarantine(i, cells, cells["rationale"], problem)

    def _label(self, cells: dict[str, Any]) -> tuple[str | None, float | None, str | None]:
        """(label, its probability, what is wrong with either) of an answer."""
        if not self.columns.label:
            return None, None, None
        label = parse_model_label(cells["label"], self.task)
        if label is None:
            said = text_cell(cells["label"])[:80]
            if said and (said in self.other_labels or len(self.other_labels) < MOST_LABELS):
                self.other_labels[said] += 1
            return None, None, f"the label is not one of {', '.join(self.task.labels)}" if said else "no label"
        probability = cells["label_probability"]
        if probability is None:
            return label, None, None
        try:
            number = float(probability)
        except (TypeError, ValueError):
            number = np.nan
        if not 0 <= number <= 1:
            return label, None, "label_probability is no number from 0 to 1"
        return label, number, None

    def _quarantine(self, i: str, cells: dict[str, Any], rationale: Any, reason: str) -> None:
        self.reasons[reason] += 1
        text = cells["line"] if cells["problem"] else cells["text"]
        row = {"review_id": i, "file": self._file, "row": self._row, "reason": reason}
        shown = {"text": text, "label": cells["label"], "rationale": rationale}
        self.aside.add(row | {name: None if cell is None else text_cell(cell) for name, cell in shown.items()})

    def output(self) -> TeacherOutput:
        """All that was read.

        Raises:
            CotdError: no row is a review's, or none is of use for a training review.
        """
        table, where = self.reviews.rows, ", ".join(self.files)
        if not self.matched:
            raise CotdError(
                f"{where}: none of its {self.rows:,} rows has the text of a review of {self.dataset}. Rows are joined by that text, "
                f"whatever its case and spaces; is {KEY}.text ('{self.columns.text or self.data.columns.text}') its column? It "
                f"begins with {self.first_text[:60]!r}, and one of the reviews with {table.texts[int(table.numbers[0])][:60]!r}."
            )
        if not self.usable:
            reasons = "; ".join(f"{count:,} × {reason}" for reason, count in self.reasons.most_common(5))
            held_out = "" if reasons else "all of them are of validation and test reviews"
            said = ", ".join(repr(label) for label, _ in self.other_labels.most_common(5))
            raise CotdError(
                f"{where}: none of its {self.rows:,} rows is an answer that students could learn from: {reasons}{held_out}. "
                f"Check {KEY}" + (f"; instead of labels it says {said}." if said else ".")
            )
        train, test = (table.splits == SPLITS.index(name) for name in ("train", "test"))
        asked = self.found[test] > 0 if self.columns.label else np.zeros(int(test.sum()), dtype=bool)
        probabilities = self.probability[test] if self.columns.label_probability else None
        measured = test_table(table.take(test), decode(self.task.labels, self.said[test]), probabilities, asked)
        counts = {
            "files": self.files,
            "rows": self.rows, "matched": self.matched, "reviews": int((self.found > 0).sum()),
            "samples": int(self.found[train].max(initial=0)),
            "unanswered_train": int((self.found[train] == 0).sum()), "unanswered_test": int((self.found[test] == 0).sum()),
            "quarantined": dict(self.reasons.most_common()), "other_labels": dict(self.other_labels.most_common(10)),
        }  # fmt: skip
        return TeacherOutput(self.annotations, measured, None, self.rationales, ImportedRows(counts, self.aside))


def parse_model_label(value: Any, task: Task) -> str | None:
    """The label that a language model's word stands for, or None: "Positive.", "**negative**" and what data sets write."""
    if not isinstance(value, (str, int, float, np.number)):
        return None
    words = {word.casefold(): label for label, word in task.verbalizers.items()}
    word = value.strip(AROUND) if isinstance(value, str) else value
    return words.get(str(word).casefold()) or task.parse_label(word)


def text_of(cell: Any) -> tuple[str, str | None]:
    """(A rationale as text, why it cannot be read or None); one that is missing is empty."""
    if cell is None or isinstance(cell, str):
        return clean_text(cell or ""), None
    return "", f"the rationale is a {type(cell).__name__}, not a string"


def text_cell(cell: Any) -> str:
    """Any cell as text that can be stored."""
    return "" if cell is None else replace_surrogates(str(cell)).strip()
