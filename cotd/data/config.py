"""The `data` block of a study: where the examples come from and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from cotd.config.model import ConfigModel
from cotd.errors import CotdError
from cotd.tasks.registry import get_task

Share = Annotated[float, Field(gt=0, lt=1)]


class Columns(ConfigModel):
    """The columns of the source, by what they hold; null for one that it lacks."""

    text: str = "text"
    label: str | None = "label"
    split: str | None = None
    group: str | None = Field(None, description="rows of one group (a movie, a product) stay in one split")


class DataConfig(ConfigModel):
    """The source of the examples, how its columns are read, and how it is split."""

    source: str | dict[Literal["train", "validation", "test"], str] = Field(
        description="embedded:NAME, a .parquet, .jsonl or .csv file (or one per split), or a hub id"
    )
    task: str = "sentiment"
    columns: Columns = Columns()
    noun: str | None = Field(None, description="what prompts call a text; null: the source's own word, else 'review'")
    test_share: Share = 0.2
    validation_share: Share = 0.1
    train_rows: int | None = Field(None, ge=1, description="use the first n training reviews (null: all)")
    validation_rows: int | None = Field(None, ge=1)
    test_rows: int | None = Field(None, ge=1)

    @field_validator("task")
    @classmethod
    def known_task(cls, name: str) -> str:
        try:
            return get_task(name).name
        except CotdError as error:
            raise ValueError(str(error)) from error

    @property
    def source_name(self) -> str:
        """The source as one string."""
        return self.source if isinstance(self.source, str) else ", ".join(self.source.values())
