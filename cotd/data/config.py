"""The `data` block of a study: where the examples come from and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from cotd.config.model import ConfigModel
from cotd.errors import nearest
from cotd.tasks.registry import TASKS

Share = Annotated[float, Field(gt=0, lt=1)]


class Columns(ConfigModel):
    """Which columns of the source hold what; a column that is absent from the source may be null."""

    text: str = "text"
    label: str | None = "label"
    split: str | None = None
    group: str | None = Field(None, description="rows of one group (a movie, a product) never fall into two splits")


class DataConfig(ConfigModel):
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
        if name not in TASKS:
            raise ValueError(f"unknown task '{name}'; known: {', '.join(TASKS)}.{nearest(name, list(TASKS))}")
        return name

    @property
    def where(self) -> str:
        """The source as one string, to name it by."""
        return self.source if isinstance(self.source, str) else ", ".join(self.source.values())
