"""Sources of examples: embedded assets, local files and hub data sets, all read into the same columns."""

from __future__ import annotations

import os
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cotd import assets
from cotd.config.model import ConfigModel
from cotd.data.config import Columns, DataConfig, template_columns
from cotd.data.examples import Examples, build_examples, limit_rows
from cotd.data.files import BLOCK, FILE_TYPES, LINE, PROBLEM, read_file, to_pandas
from cotd.data.table import SPLITS
from cotd.errors import CotdError, nearest
from cotd.tasks.base import Task, cell_text
from cotd.utils.text import first_line

# Names of splits, in a column or on the hub; others on the hub (IMDb's `unsupervised`) are left out.
SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


def load_examples(data: DataConfig, task: Task, spill_dir: Path | None = None) -> Examples:
    """The examples of a source, split, cleaned, and limited to the configured number of rows.

    Args:
        spill_dir: a folder on whose disk their texts are kept, see `cotd.data.spill.open_spill_file`.

    Raises:
        CotdError: the source does not exist, a mapped column is missing, its labels are not the task's, or a split has no
            usable row.
    """
    name = dataset_name(data)
    shares = (data.test_share, data.validation_share)
    examples = build_examples(read_blocks(data, task), name, task, *shares, spill_dir)
    if examples.label_problem:
        raise CotdError(examples.label_problem)
    limits = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
    examples = limit_rows(examples, limits)
    empty = [s for s in SPLITS if not examples.counts[f"kept_{s}"]]
    if empty:
        raise CotdError(
            f"{name}: no example in split {' or '.join(empty)}. "
            "Give more rows, name a split column (data.columns.split), or raise data.test_share / data.validation_share."
        )
    return examples


def dataset_name(data: DataConfig) -> str:
    """The source's name in each example's id, without the folder of a file."""
    if isinstance(data.source, dict):
        return "+".join(Path(p).name for p in data.source.values())
    return Path(data.source).name if data.source.endswith(FILE_TYPES) else data.source


def noun(data: DataConfig, task: Task) -> str:
    """What prompts call one text of this source: as the configuration says, or the source, or the task."""
    if data.noun:
        return data.noun
    if isinstance(data.source, str) and assets.is_embedded(data.source):
        return assets.get_asset(data.source).noun
    return task.noun


def read_blocks(data: DataConfig, task: Task) -> Iterator[pd.DataFrame]:
    """The source's rows, a block at a time, with the columns that `build_examples` takes.

    Raises:
        CotdError: the source does not exist, or the task needs options and no column has them.
    """
    source, template = data.source, data.input
    if task.needs_choices and not data.columns.choices:
        raise CotdError(f"task '{task.name}' chooses among each row's own options: name their column in data.columns.choices.")
    if isinstance(source, dict):
        return join_splits((split, read_mapped(path, data.columns, template=template)) for split, path in source.items())
    if assets.is_embedded(source):
        asset = assets.get_asset(source)
        if asset.kind != "examples":
            kinds = ", ".join(assets.PREFIX + a.name for a in assets.ASSETS.values() if a.kind == "examples")
            raise CotdError(f"data.source '{source}' is a {asset.kind}, not examples. Embedded examples: {kinds}.")
        columns = data.columns.model_copy(update={"group": "group"})
        return read_mapped(str(assets.require(source) / "reviews.parquet"), columns, template=template)
    if source.endswith(FILE_TYPES):
        return read_mapped(source, data.columns, template=template)
    if Path(source).exists() or "/" not in source:
        embedded = [assets.PREFIX + name for name in assets.ASSETS]
        raise CotdError(
            f"data.source '{source}' is not embedded:NAME, a file ending in {', '.join(FILE_TYPES)}, "
            f"or a hub id (OWNER/NAME).{nearest(assets.PREFIX + source, embedded)}"
        )
    return read_hub(source, data.columns, task, template)


def read_mapped(
    path: str, columns: ConfigModel, key: str = "data.columns", template: str | None = None
) -> Iterator[pd.DataFrame]:
    """A file's rows, a block at a time, with mapped columns: see `map_columns`. JSON lines may lack some of them."""
    mapped = [name for name, _ in mapped_columns(columns, key, template)]
    for number, block in enumerate(read_file(path)):
        if path.endswith(".jsonl") and (absent := [name for name in mapped if name not in block]):
            if number == 0:  # is it in any line?
                known = dict.fromkeys(name for other in read_file(path) for name in other)
                map_columns(pd.DataFrame(columns=list(known)), columns, path, key, template)
            block[absent] = None
        yield map_columns(block, columns, path, key, template)


def join_splits(parts: Iterable[tuple[str, Iterator[pd.DataFrame]]]) -> Iterator[pd.DataFrame]:
    """The rows of each split, with a column that names it."""
    for split, blocks in parts:
        for block in blocks:
            yield block.assign(split=split)


def map_columns(
    frame: pd.DataFrame, columns: ConfigModel, where: str, key: str = "data.columns", template: str | None = None
) -> pd.DataFrame:
    """Renames the mapped columns to their roles (text, label, choices, …), and those of bad rows to problem and line.

    Args:
        where: the file, and key: the block of the study that names the columns, for messages.
        template: of the text, over columns, in place of a text column.

    Raises:
        CotdError: all missing columns at once. An absent `label` column is an error only if it was renamed.
    """
    optional = {f"{key}.label"} if isinstance(columns, Columns) and columns.label == "label" else set()
    existing = [str(name) for name in frame.columns if name not in (PROBLEM, LINE)]
    missing = [
        f"{where}: no column '{name}' ({named_by}); it has: {', '.join(existing)}.{nearest(name, existing)}"
        for name, named_by in mapped_columns(columns, key, template)
        if name not in frame.columns and named_by not in optional
    ]
    if missing:
        raise CotdError(*missing)
    used = {role: name for role, name in roles(columns).items() if not (template and role == "text")}
    result = pd.DataFrame({role: frame[name] for role, name in used.items() if name in frame.columns})
    if template:
        result["text"], missing_cells = fill_template(frame, template)
        result["problem"] = missing_cells
    if PROBLEM in frame:
        result["problem"] = frame[PROBLEM].where(frame[PROBLEM].notna(), result["problem"]) if template else frame[PROBLEM]
        result["line"] = frame[LINE]
    if "split" in result:
        bad = frame[PROBLEM].notna() if PROBLEM in frame else [False] * len(result)
        result["split"] = [None if b else parse_split(s, where) for s, b in zip(result["split"], bad, strict=True)]
    return result


def roles(columns: ConfigModel) -> dict[str, str]:
    """Role (text, label, split or group, say) → the column that is mapped to it."""
    return {role: name for role, name in columns.model_dump().items() if name}


def mapped_columns(columns: ConfigModel, key: str, template: str | None) -> list[tuple[str, str]]:
    """(column, the key of the study that names it) of every column that is read."""
    named = [(name, f"{key}.{role}") for role, name in roles(columns).items() if not (template and role == "text")]
    return [*((name, "data.input") for name in template_columns(template or "")), *named]


def fill_template(frame: pd.DataFrame, template: str) -> tuple[list[str | None], list[str | None]]:
    """(each row's text by a template over its columns; why a row has none, or None)."""
    parts = [(literal, name) for literal, name, _, _ in string.Formatter().parse(template)]
    cells = {name: [cell_text(value) for value in frame[name]] for name in template_columns(template)}
    texts: list[str | None] = []
    problems: list[str | None] = []
    for row in range(len(frame)):
        missing = [name for name, values in cells.items() if not values[row]]
        problems.append(f"no text in column {', '.join(missing)}" if missing else None)
        filled = (literal + (cells[name][row] or "" if name else "") for literal, name in parts)
        texts.append(None if missing else "".join(filled))
    return texts, problems


def parse_split(value: Any, where: str) -> str:
    """The split that a cell names.

    Raises:
        CotdError: it names none.
    """
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise CotdError(f"{where}: split '{value}' is not train, validation or test. Map it before, or drop the column.")
    return split


def read_hub(source: str, columns: Columns, task: Task, template: str | None) -> Iterator[pd.DataFrame]:
    """A hub data set's labelled splits, through `datasets` (which honours HF_ENDPOINT), a block at a time."""
    # Else `datasets` tells an outside host, whatever HF_ENDPOINT says, the name of each data set that is loaded.
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        splits = datasets.load_dataset(source)
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetNotFoundError) as error:
        raise CotdError(
            f"cannot load the hub data set '{source}': {first_line(error)}. Check its name and the network "
            "(HF_ENDPOINT names another hub), or use embedded:rotten-tomatoes, which needs neither."
        ) from error
    known = {str(name): SPLIT_NAMES[str(name)] for name in splits if str(name) in SPLIT_NAMES}
    if not known:
        raise CotdError(f"{source}: none of its splits ({', '.join(map(str, splits))}) is named {', '.join(SPLIT_NAMES)}.")
    return join_splits(
        (split, read_split(splits[name], columns, f"{source}/{name}", task, template)) for name, split in known.items()
    )


def read_split(split: Any, columns: Columns, where: str, task: Task, template: str | None) -> Iterator[pd.DataFrame]:
    """A split of a hub data set, a block at a time from the file that it is mapped from.

    Class labels are read by their names if the task knows all of these, else by their numbers: Yelp's names are "1" and "2".
    """
    feature = split.features.get(columns.label) if columns.label else None
    names = getattr(feature, "names", None)
    if names and not all(task.parse(name) for name in names):
        names = None
    for block in split.with_format("arrow").iter(BLOCK):
        frame = to_pandas(block)
        if names and pd.api.types.is_integer_dtype(frame[columns.label].dtype):
            frame[columns.label] = [names[code] if 0 <= code < len(names) else None for code in frame[columns.label]]
        yield map_columns(frame, columns, where, template=template)
