"""How rows of any table become what a student reads: a text each, and options where the task needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cotd.data.config import template_columns
from cotd.data.files import text_problem
from cotd.data.rows import BAD_CHOICES, parse_choices
from cotd.data.sources import fill_template
from cotd.errors import CotdError
from cotd.tasks.base import Task


@dataclass(frozen=True)
class InputColumns:
    """The columns of a student's inputs.

    Attributes:
        text: the text's column, unless there is a template.
        template: of the text, over columns, as `data.input` of a study.
        choices: the options' column; None for tasks whose examples have no options of their own.
    """

    text: str = "text"
    template: str | None = None
    choices: str | None = None

    @classmethod
    def make(
        cls, card: dict[str, Any], task: Task, text: str | None = None, template: str | None = None, choices: str | None = None
    ) -> InputColumns:
        """The columns that are named, else those of the study that a student's card tells of, else `text` and `choices`.

        Raises:
            CotdError: a text column and a template are named, a template that names no column, or options that the task lacks.
        """
        problems = []
        if text and template:
            problems.append("--text and --input-template are mutually exclusive: leave out one.")
        if choices and not task.needs_choices:
            problems.append(f"--choices is for multiple choice, and the task '{task.name}' is {task.kind}: leave it out.")
        try:
            if template is not None and not template_columns(template):
                problems.append("--input-template names no column. Write a column's name in braces, as in {title}.")
        except ValueError as error:
            problems.append(f"--input-template: {error}.")
        if problems:
            raise CotdError(*problems)
        data = card.get("data") or {}
        columns = data.get("columns") or {}
        return cls(
            text or columns.get("text") or "text",
            template or (None if text else data.get("input")),
            (choices or columns.get("choices") or "choices") if task.needs_choices else None,
        )

    @property
    def names(self) -> list[tuple[str, str]]:
        """(column, the option of a command that names it) of every column that is read."""
        texts = (
            [(name, "--input-template") for name in template_columns(self.template)]
            if self.template
            else [(self.text, "--text")]
        )
        return texts + ([(self.choices, "--choices")] if self.choices else [])

    def read(self, frame: pd.DataFrame) -> tuple[list[Any], list[list[str]] | None, list[str | None]]:
        """Each row's text, its options (None if the task needs none), and why it cannot be used, or None.

        Args:
            frame: a column that it lacks counts as empty.
        """
        frame = frame.reindex(columns=[name for name, _ in self.names]).astype(object)
        frame = frame.where(frame.notna(), None)
        texts: Sequence[Any] = list(frame[self.text]) if not self.template else []
        problems = [text_problem(value) for value in texts]
        if self.template:
            texts, problems = fill_template(frame, self.template)
        if self.choices is None:
            return list(texts), None, problems
        cells = list(frame[self.choices])
        choices = [parse_choices(cell) for cell in cells]
        for row, (cell, options) in enumerate(zip(cells, choices, strict=True)):
            if options is None:
                empty = cell is None or (isinstance(cell, str) and not cell.strip())
                problems[row] = problems[row] or ("no options" if empty else BAD_CHOICES)
        return list(texts), [options or [] for options in choices], problems
