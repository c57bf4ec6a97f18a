"""Answers that a language model has given already: the `teacher.answers` block of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from cotd.config.model import Block
from cotd.data.files import FILE_TYPES

if TYPE_CHECKING:
    from cotd.data.config import DataConfig
    from cotd.teachers.config import TeacherConfig


# The strategy of a teacher that is asked nothing; it need not be written.
READ_ANSWERS = "read_answers"


class AnswerColumns(Block):
    """Which columns of the file hold what."""

    text: str | None = Field(
        None, description="the review, by which answers and reviews are joined; null: as in data.columns.text"
    )
    label: str | None = Field(None, description="the label that the model gave, not knowing gold's")
    rationale: str | None = Field(
        None, description="the rationale that it wrote with that label; null: none, and students learn from the labels alone"
    )
    gold_rationale: str | None = Field(
        None,
        description="the rationale that it wrote given the gold label (cot_labelled, cot_joint). May be the column of "
        "`rationale`: then those whose label is gold's are taken",
    )
    label_probability: str | None = Field(None, description="of the label that it gave, from 0 to 1")

    @model_validator(mode="after")
    def enough_to_learn_from(self) -> AnswerColumns:
        if self.label is None and self.gold_rationale is None:
            raise ValueError("name the column of label, with that of rationale where there is one, or that of gold_rationale")
        if self.rationale and self.label is None:
            raise ValueError("rationale is what was written with the label: name its column too")
        if self.label_probability and self.label is None:
            raise ValueError("label_probability is that of the label: name its column too")
        return self


class AnswersConfig(Block):
    """A file of answers, some or all of the study's reviews', one a row; several rows of one review are its samples."""

    source: str | None = Field(None, description="a .parquet, .jsonl or .csv file; null: the file that data.source names")
    columns: AnswerColumns

    @field_validator("source")
    @classmethod
    def known_type(cls, source: str | None) -> str | None:
        if source is not None and not source.endswith(FILE_TYPES):
            raise ValueError(f"not a file that ends in {', '.join(FILE_TYPES)}")
        return source

    def files(self, data: DataConfig) -> list[str]:
        """The files to read: its own, or those of the reviews."""
        if self.source:
            return [self.source]
        files = [data.source] if isinstance(data.source, str) else list(data.source.values())
        return [file for file in files if file.endswith(FILE_TYPES)]


def with_strategy(plain: Any) -> Any:
    """A plain `teacher` block, with the strategy that follows from its `answers`."""
    if not isinstance(plain, dict) or plain.get("answers") is None:
        return plain
    return {"strategy": READ_ANSWERS} | plain


def teacher_problems(teacher: TeacherConfig) -> list[str]:
    """What of a teacher's settings does not go with its answers' being read, or not."""
    if teacher.answers is None:
        return ["strategy read_answers needs `answers`, with the file's columns"] if teacher.strategy == READ_ANSWERS else []
    problems = []
    if teacher.strategy != READ_ANSWERS:
        problems.append(f"`answers` are read and nobody is asked: leave out strategy {teacher.strategy}, or the answers")
    if teacher.api:
        problems.append("`answers` are read and nobody is asked: leave out api, or the answers")
    if "model" not in teacher.model_fields_set:
        problems.append("model is missing: name who wrote the answers, as in model: gpt-3.5-turbo; reports call the teacher so")
    if teacher.samples != 1:
        problems.append("samples is for teachers that are asked: of answers that are read, each row of a review is a sample")
    return problems
