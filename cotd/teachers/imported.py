"""Imports a file of labels and rationales that a language model wrote as a study's annotations.

A row of the file belongs to the example with its text, and its options if it has its own: after cleaning, in any case.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cotd.data.cleaning import clean_text, replace_surrogates
from cotd.data.config import SPLITS, DataConfig
from cotd.data.examples import Examples
from cotd.data.files import file_digest, find_files, text_problem
from cotd.data.rows import BAD_CHOICES, example_id, parse_choices
from cotd.data.sources import dataset_name, read_mapped
from cotd.data.spill import SortedRows
from cotd.data.table import NONE, decode
from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.tasks.find import find_answer
from cotd.teachers.annotations import annotation_row, tidy_rationale
from cotd.teachers.config import ImportedConfig, TeacherConfig
from cotd.teachers.output import (
    ImportedRows,
    TeacherOutput,
    annotation_rows,
    explained_examples,
    rationale_rows,
    test_table,
    with_vote_shares,
)
from cotd.teachers.store import new_completion
from cotd.teachers.teacher import Teacher
from cotd.utils.model_output import json_objects, without_thoughts

KEY = "teacher.imported.columns"
CELLS = ["text", "choices", "label", "rationale", "gold_rationale", "label_probability", "problem", "line"]
NO_EXAMPLE = "no example of the study has this text"
NO_GOLD = "the example has no gold label for the rationale"
NOT_GOLD = "the rationale is for a label other than gold"
QUARANTINED = pa.schema(
    {name: pa.string() for name in ("example_id", "file")}
    | {"row": pa.int64()}  # of the file, from 1, without a header
    | {name: pa.string() for name in ("text", "label", "rationale", "reason")}
)
# How many different labels outside the task are counted: a wrong column may hold as many as rows.
MAX_OTHER_LABELS = 1000
# A completion of which only the text is known.
WRITTEN = new_completion("", prompt_tokens=0, output_tokens=0)


def imported_files(data: DataConfig, config: ImportedConfig) -> list[str]:
    """The files to import.

    Raises:
        CotdError: one is missing.
    """
    files, problems = [], []
    for source in config.files(data):
        try:
            files += find_files(source)
        except CotdError as error:
            problems += [f"teacher.imported.source: {problem}" for problem in error.problems]
    if problems:
        raise CotdError(*problems)
    return files


def imported_digest(data: DataConfig, config: ImportedConfig) -> str:
    """Content digest of the files to import.

    Raises:
        CotdError: one is missing.
    """
    content = hashlib.sha256()
    for path in imported_files(data, config):
        content.update(bytes.fromhex(file_digest(path)))
    return content.hexdigest()[:16]


def imported_blocks(path: str, data: DataConfig, config: ImportedConfig) -> Iterator[pd.DataFrame]:
    """A file's rows with those columns of CELLS that it has, a block at a time.

    Raises:
        CotdError: it cannot be read, or lacks columns that are named: all of them at once.
    """
    columns = config.columns
    own = {"text": columns.text or data.columns.text, "choices": columns.choices or data.columns.choices}
    return read_mapped(path, columns.model_copy(update=own), KEY, None if columns.text else data.input)


def check_imported(data: DataConfig, config: ImportedConfig) -> None:
    """Looks at the beginning of each file, before the examples are read.

    Raises:
        CotdError: as `imported_files` and `imported_blocks`.
    """
    problems: list[str] = []
    for path in imported_files(data, config):
        try:
            next(imported_blocks(path, data, config))
        except CotdError as error:
            problems += error.problems
    if problems:
        raise CotdError(*problems)


def imported_teacher(data: DataConfig, config: TeacherConfig) -> Teacher:
    """The teacher that wrote the files; its revision is their content."""
    assert config.imported is not None
    digest = imported_digest(data, config.imported)
    return Teacher(config.model, ", ".join(filter(None, [config.revision, f"imported {digest}"])), config)


def read_imported(data: DataConfig, teacher: Teacher, examples: Examples, task: Task) -> TeacherOutput:
    """The annotations of training examples, and the labels of test examples to score the teacher by.

    An example's rows are its samples, in the file's order. Labels count in any case and with punctuation around them. Without
    a column of probabilities, a label's probability is the share of its example's samples that have it.

    Raises:
        CotdError: a file cannot be read; no row is of an example; none is of use for a training example.
    """
    assert teacher.config.imported is not None
    reader = ImportedReader(imported_files(data, teacher.config.imported), data, teacher, examples, task)
    for path in reader.files:
        for block in imported_blocks(path, data, teacher.config.imported):
            reader.add(block, path)
    return reader.output()


class ImportedReader:
    """Joins rows to examples. Takes some twenty bytes of memory an example, however many rows there are.

    Attributes:
        usable: how many annotations without an error there are.
    """

    def __init__(self, files: list[str], data: DataConfig, teacher: Teacher, examples: Examples, task: Task):
        assert teacher.config.imported is not None
        self.config, self.columns = teacher.config, teacher.config.imported.columns
        self.files, self.data, self.examples, self.task = files, data, examples, task
        self.dataset = dataset_name(data)
        self.origin = {"teacher": teacher.name, "revision": teacher.revision, "prompt_hash": None}
        voting = self.columns.label is not None and self.columns.label_probability is None
        self.annotations = annotation_rows(self.config, examples, *([with_vote_shares] if voting else []))
        table, spill_dir = examples.rows, examples.rows.texts.spill_dir
        explained = explained_examples(self.config, examples)
        self.is_explained = np.isin(table.numbers, explained.numbers)
        self.rationales = rationale_rows(explained)
        self.quarantined = SortedRows(QUARANTINED, ["example_id", "file", "row", "reason"], len(table), spill_dir)
        # Of each example: the number of its rows, and the first label among them with its probability.
        self.samples = np.zeros(len(table), dtype=np.int32)
        self.labels = np.full(len(table), NONE, dtype=np.int32)
        self.codes = {label: code for code, label in enumerate(task.labels)}  # grows where labels are not fixed
        self.probabilities = np.full(len(table), np.nan)
        self.rows = self.matched = self.usable = 0
        self.reasons: Counter[str] = Counter()
        self.other_labels: Counter[str] = Counter()
        self.first_text = ""
        self._file, self._row = "", 0

    def add(self, block: pd.DataFrame, file: str) -> None:
        """Reads the next rows of a file.

        Args:
            block: with those columns of CELLS that it has.
        """
        if file != self._file:
            self._file, self._row = file, 0
        frame = block.reindex(columns=CELLS).astype(object)
        rows = frame.where(frame.notna(), None).to_dict("records")
        texts = [clean_text(cells["text"]) if isinstance(cells["text"], str) else "" for cells in rows]
        choices = [parse_choices(cells["choices"]) if self.task.needs_choices else None for cells in rows]
        ids = [example_id(text, own) for text, own in zip(texts, choices, strict=True)]
        positions = self.examples.rows.positions(ids).tolist()
        for cells, i, text, own, position in zip(rows, ids, texts, choices, positions, strict=True):
            cells["choices"] = own
            self._row += 1
            self.rows += 1
            self.first_text = self.first_text or text
            problem = cells["problem"] or text_problem(cells["text"]) or (None if text else "empty text")
            if self.task.needs_choices and own is None:
                problem = problem or BAD_CHOICES
            if problem or position == NONE:
                self._quarantine(i, cells, cells["rationale"], problem or NO_EXAMPLE)
                continue
            self.matched += 1
            if self.examples.rows.splits[position] == SPLITS.index("train"):
                self._annotate(i, position, cells)
            else:
                self._measure(i, position, cells)
            self.samples[position] += 1

    def _annotate(self, i: str, position: int, cells: dict[str, Any]) -> None:
        """Adds the annotations of a training example's row."""
        sample, gold = int(self.samples[position]), self.examples.rows.label(position)
        label, probability, problem = self._label(cells)
        rows = []
        if self.columns.label:
            rationale, unread = rationale_text(cells["rationale"]) if self.columns.rationale else (None, None)
            error = problem or unread
            both = two_probabilities(self.task.options(cells["choices"]), label, probability)
            rows.append(
                annotation_row(
                    i, sample, False, label, probability, rationale, WRITTEN, self.origin, error=error, probabilities=both
                )
            )
        if self.columns.gold_rationale and self.config.gold_conditioned and gold:
            rationale, unread = rationale_text(cells["gold_rationale"])
            shared = self.columns.gold_rationale == self.columns.rationale
            error = (problem or (NOT_GOLD if label != gold else None)) if shared else None
            rows.append(annotation_row(i, sample, True, gold, None, rationale, WRITTEN, self.origin, error=error or unread))
        if not rows:
            self._quarantine(i, cells, cells["gold_rationale"], NO_GOLD)
        for row in rows:
            self.annotations.add(row)
            self.usable += row["error"] is None
        for reason, rationale in {row["error"]: row["rationale"] for row in rows if row["error"]}.items():
            self._quarantine(i, cells, rationale, reason)

    def _measure(self, i: str, position: int, cells: dict[str, Any]) -> None:
        """Keeps the label of a held-out example's row, and its rationale if students read it."""
        if not self.columns.label:
            return
        label, probability, problem = self._label(cells)
        if label and self.labels[position] == NONE:
            self.labels[position] = self.codes.setdefault(label, len(self.codes))
            self.probabilities[position] = np.nan if probability is None else probability
        if self.is_explained[position] and not self.samples[position]:
            rationale, unread = rationale_text(cells["rationale"])
            rationale, untidy = tidy_rationale(rationale, "stop")
            self.rationales.add({"example_id": i, "rationale": "" if unread or untidy else rationale})
            problem = problem or unread or untidy
        if problem:
            self._quarantine(i, cells, cells["rationale"], problem)

    def _label(self, cells: dict[str, Any]) -> tuple[str | None, float | None, str | None]:
        """(label, its probability, what is wrong with either) of a row."""
        if not self.columns.label:
            return None, None, None
        label = parse_model_label(cells["label"], self.task, cells["choices"])
        if label is None:
            other = cell_text(cells["label"])[:80]
            if other and (other in self.other_labels or len(self.other_labels) < MAX_OTHER_LABELS):
                self.other_labels[other] += 1
            return None, None, f"the label is not {self.task.expected()}" if other else "no label"
        if cells["label_probability"] is None:
            return label, None, None
        try:
            probability = float(cells["label_probability"])
        except (TypeError, ValueError):
            probability = np.nan
        if not 0 <= probability <= 1:
            return label, None, "label_probability is not a number from 0 to 1"
        return label, probability, None

    def _quarantine(self, i: str, cells: dict[str, Any], rationale: Any, reason: str) -> None:
        self.reasons[reason] += 1
        text = cells["line"] if cells["problem"] else cells["text"]
        row = {"example_id": i, "file": self._file, "row": self._row, "reason": reason}
        shown = {"text": text, "label": cells["label"], "rationale": rationale}
        self.quarantined.add(row | {name: None if cell is None else cell_text(cell) for name, cell in shown.items()})

    def output(self) -> TeacherOutput:
        """All that was read.

        Raises:
            CotdError: no row is of an example, or none is of use for a training example.
        """
        table, files = self.examples.rows, ", ".join(self.files)
        if not self.matched:
            by, column = "text", self.columns.text or self.data.input or self.data.columns.text
            if self.task.needs_choices:
                by = "text and options"
            first = table.texts[int(table.numbers[0])][:60]
            raise CotdError(
                f"{files}: none of its {self.rows:,} rows has the {by} of an example of {self.dataset}. Rows and examples are "
                f"joined by {by}: the file's begin with {self.first_text[:60]!r}, the examples with {first!r}. Check {KEY}.text "
                f"('{column}')."
            )
        if not self.usable:
            reasons = "; ".join(f"{count:,} × {reason}" for reason, count in self.reasons.most_common(5))
            labels = ", ".join(repr(label) for label, _ in self.other_labels.most_common(5))
            raise CotdError(
                f"{files}: students can learn from none of its {self.rows:,} rows: "
                f"{reasons or 'all are of validation and test examples'}"
                + (f"; its labels include {labels}" if labels else "")
                + f". Check {KEY}."
            )
        train, test = (table.splits == SPLITS.index(name) for name in ("train", "test"))
        has_label = self.samples[test] > 0 if self.columns.label else np.zeros(int(test.sum()), dtype=bool)
        probabilities = self.probabilities[test] if self.columns.label_probability else None
        measured = test_table(table.take(test), decode(list(self.codes), self.labels[test]), probabilities, has_label)
        counts = {
            "files": self.files,
            "rows": self.rows, "matched": self.matched, "examples": int((self.samples > 0).sum()),
            "samples": int(self.samples[train].max(initial=0)),
            "without_row_train": int((self.samples[train] == 0).sum()),
            "without_row_test": int((self.samples[test] == 0).sum()),
            "quarantined": dict(self.reasons.most_common()), "other_labels": dict(self.other_labels.most_common(10)),
        }  # fmt: skip
        return TeacherOutput(self.annotations, measured, None, self.rationales, ImportedRows(counts, self.quarantined))


def parse_model_label(value: Any, task: Task, choices: Sequence[str] | None = None) -> str | None:
    """The label that a cell of a language model's words stands for, or None: see `cotd.tasks.find.find_answer`."""
    if not isinstance(value, (str, int, float, np.number)):
        return None
    return find_answer(value, task, choices) if isinstance(value, str) else task.parse(value, choices)


def two_probabilities(
    options: Sequence[str] | None, label: str | None, probability: float | None
) -> tuple[float, float] | None:
    """The probabilities of two options, of which one's is known; None if it is not, or if there are others."""
    if probability is None or not options or len(options) != 2:
        return None
    return (probability, 1 - probability) if label == options[0] else (1 - probability, probability)


def rationale_text(cell: Any) -> tuple[str, str | None]:
    """(A rationale as text, "" if it is missing; why it cannot be read, or None): that of a model's JSON, without its thoughts."""
    if cell is None or isinstance(cell, str):
        text = without_thoughts(cell or "")
        written = [plain["rationale"] for plain in json_objects(text) if isinstance(plain.get("rationale"), str)]
        return clean_text(written[-1] if written else text), None
    return "", f"the rationale is a {type(cell).__name__}, not a string"


def cell_text(cell: Any) -> str:
    """Any cell as text that can be stored."""
    return "" if cell is None else replace_surrogates(str(cell)).strip()
