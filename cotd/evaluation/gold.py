"""Examples with gold labels, of any source, to score students on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cotd import assets
from cotd.config.model import validate_config
from cotd.data.config import SPLITS, DataConfig
from cotd.data.files import names_files
from cotd.data.inputs import InputColumns
from cotd.data.sources import load_examples
from cotd.errors import CotdError
from cotd.tasks.base import Task

ALL = "all"  # every split of a source


class NamedColumns(NamedTuple):
    """The columns of a source that a command names; None for those that it does not."""

    text: str | None = None
    template: str | None = None
    choices: str | None = None
    label: str | None = None


UNNAMED = NamedColumns()


def require_split(split: str) -> None:
    """Raises a CotdError unless `split` is one of SPLITS or ALL."""
    if split not in (*SPLITS, ALL):
        raise CotdError(f"--split '{split}' is not {', '.join(SPLITS)} or {ALL}.")


def gold_examples(
    source: str, task: Task, split: str = "test", named: NamedColumns = UNNAMED, study: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """A source's examples with gold labels, of one split or of all, as an example table.

    Args:
        named: columns. One that is not named is called as in the study's data, else `text`, `label` and `choices`.
        study: the `data` block of the study that trained the student, whose own source is split as the study splits it.

    Raises:
        CotdError: there is no such source, column or split, or no gold label in it.
    """
    require_split(split)
    every = load_examples(read_as(source, task, named, study or {}), task, needed=[] if split == ALL else [split])
    examples = every.table if split == ALL else every.split(split)
    examples = examples[examples["label"].notna()]
    if examples.empty:
        where = "" if split == ALL else f" in its {split} split"
        raise CotdError(f"{source}: no example with a gold label{where}. Name the column that has it: --label.")
    return examples.reset_index(drop=True)


def read_as(source: str, task: Task, named: NamedColumns, study: Mapping[str, Any]) -> DataConfig:
    """How a source is read and split, see `gold_examples`."""
    own = is_own_source(source, study.get("source"))
    known = {} if assets.is_embedded(source) and not own else study  # embedded examples have columns of their own
    inputs = InputColumns.make({"data": known}, task, named.text, named.template, named.choices)
    columns = {"label": named.label or (known.get("columns") or {}).get("label") or "label", "choices": inputs.choices}
    if not inputs.template:
        columns["text"] = inputs.text
    plain: dict[str, Any] = {"source": source}
    if own:
        plain = {key: study[key] for key in DataConfig.model_fields if key in study}
        columns = {k: v for k, v in (plain.get("columns") or {}).items() if k != "text"} | columns
    return validate_config(DataConfig, {**plain, "input": inputs.template, "columns": columns}, source)


def is_own_source(source: str, own: Any) -> bool:
    """Whether a source is the study's."""
    if source == own or not isinstance(own, str):
        return source == own
    return (
        names_files(source)
        and "://" not in source
        and Path(source).expanduser().absolute() == Path(own).expanduser().absolute()
    )
