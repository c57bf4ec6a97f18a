"""Answers that a language model has given already: the `teacher.answers` block of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator, model_validator

from cotd.config.model import ConfigModel
from cotd.data.files import FILE_TYPES

if TYPE_CHECKING:
    from cotd.data.config import DataConfig


class ImportedColumns(ConfigModel):
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
    def enough_to_learn_from(self) -> ImportedColumns:
        if self.label is None and self.gold_rationale is None:
            raise ValueError("name the column of label, with that of rationale where there is one, or that of gold_rationale")
        if self.rationale and self.label is None:
            raise ValueError("rationale is what was written with the label: name its column too")
        if self.label_probability and self.label is None:
            raise ValueError("label_probability is that of the label: name its column too")
        return self


class ImportedConfig(ConfigModel):
    """A file of answers, some or all of the study's reviews', one a row; several rows of one review are its samples."""

    source: str | None = Field(None, description="a .parquet, .jsonl or .csv file; null: the file that data.source names")
    columns: ImportedColumns

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
