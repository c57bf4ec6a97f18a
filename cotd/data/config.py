"""The `data` block of a study: where the examples come from and how they are split."""

from __future__ import annotations

import string
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from cotd.config.model import ConfigModel

Share = Annotated[float, Field(gt=0, lt=1)]


SPLITS = ("train", "validation", "test")
# How data sets call their splits, in a column, as a file's name or on the hub; others on the hub (IMDb's `unsupervised`) are
# left out.
SPLIT_NAMES = (
    dict.fromkeys(("train", "training"), "train")
    | dict.fromkeys(("test", "testing"), "test")
    | dict.fromkeys(("validation", "valid", "val", "dev", "development", "eval", "evaluation"), "validation")
)


class Hub(ConfigModel):
    """Which part of a hub data set, and which state of it."""

    config: str | None = Field(None, description="one of the data set's configurations; null: it has one alone, or a default")
    revision: str | None = Field(None, description="a commit, tag or branch, by which the same data are loaded later")


class Columns(ConfigModel):
    """The columns of the source, by what they hold; null for one that it lacks."""

    text: str = Field("text", min_length=1)
    label: str | None = "label"
    choices: str | None = Field(
        None, description="the options of each row, for multiple choice: a list, in CSV written as JSON"
    )
    split: str | None = None
    group: str | None = Field(None, description="rows of one group (a movie, a product) stay in one split")


class DataConfig(ConfigModel):
    """The source of the examples, how its columns are read, and how it is split."""

    source: str | dict[Literal["train", "validation", "test"], str] = Field(
        description="embedded:NAME, a .parquet, .jsonl, .json, .csv or .tsv file, its URL, a folder or pattern of such files "
        "(or one of these per split), or a hub id"
    )
    hub: Hub = Hub()
    input: str | None = Field(
        None, description='the text of an example as a template over columns, in place of columns.text: "{title}: {body}"'
    )
    columns: Columns = Columns()
    noun: str | None = Field(None, description="what prompts call a text; null: the source's own word, else the task's noun")
    test_share: Share = 0.2
    validation_share: Share = 0.1
    unlabelled: str | None = Field(
        None,
        description="more texts, without gold, for whatever needs none: read as source is, but for label and split; they join the "
        "training split, without those that are in another one. May be source itself: its training examples beyond train_rows",
    )
    train_rows: int | None = Field(None, ge=1, description="use the first n training examples (null: all)")
    validation_rows: int | None = Field(None, ge=1)
    test_rows: int | None = Field(None, ge=1)
    unlabelled_rows: int | None = Field(None, ge=1)

    @field_validator("source", mode="before")
    @classmethod
    def canonical_splits(cls, source: Any) -> Any:
        if not isinstance(source, dict):
            return source
        if not source:
            raise ValueError("names no file. Write a file a split, as in {train: a.csv, test: b.csv}")
        named = [SPLIT_NAMES.get(str(split).lower(), split) for split in source]
        if len(set(named)) < len(named):
            raise ValueError(f"two of {', '.join(map(str, source))} are names of one split")
        return dict(zip(named, source.values(), strict=True))

    @field_validator("source", "unlabelled")
    @classmethod
    def no_secrets(cls, source: str | dict[str, str] | None) -> str | dict[str, str] | None:
        for place in source.values() if isinstance(source, dict) else [source or ""]:
            if "://" in place and (urlsplit(place).username or urlsplit(place).query):
                raise ValueError(
                    "a URL with a password or a query: results would show it. Download the file, or sign in by variables"
                )
        return source

    @field_validator("input")
    @classmethod
    def names_columns(cls, template: str | None) -> str | None:
        if template is not None and not template_columns(template):
            raise ValueError("the template names no column. Write a column's name in braces, as in {title}")
        return template

    @model_validator(mode="after")
    def one_text(self) -> DataConfig:
        if self.input is not None and self.columns.text != Columns().text:
            raise ValueError("input and columns.text are mutually exclusive: leave out one")
        return self

    @property
    def source_name(self) -> str:
        """The source as one string."""
        return self.source if isinstance(self.source, str) else ", ".join(self.source.values())


def template_columns(template: str) -> list[str]:
    """The columns that a template names, in their order.

    Raises:
        ValueError: a brace is not closed, or stands for itself and is written once.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}. Write a literal brace twice: {{{{ or }}}}") from error
    if any(name == "" for _, name, _, _ in parts):
        raise ValueError("{} names no column. Write a column's name in the braces")
    return list(dict.fromkeys(name for _, name, _, _ in parts if name))
