"""Sources of examples: embedded assets, local files and hub data sets, all read into the same columns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cotd import assets
from cotd.config.model import ConfigModel
from cotd.data.config import Columns, DataConfig
from cotd.data.examples import Examples, build_examples, limit_rows
from cotd.data.files import BLOCK, FILE_TYPES, LINE, PROBLEM, read_file, to_pandas
from cotd.data.table import SPLITS
from cotd.errors import CotdError, nearest
from cotd.tasks.registry import get_task
from cotd.utils.text import first_line

# Names of splits, in a column or on the hub; others on the hub (IMDb's `unsupervised`) are left out.
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}


def load_examples(data: DataConfig, spill_dir: Path | None = None) -> Examples:
    """The examples of a source, split, cleaned, and limited to the configured number of rows.

    Args:
        spill_dir: a folder on whose disk their texts are kept, see `cotd.data.spill.open_spill_file`.

    Raises:
        CotdError: the source does not exist, a mapped column is missing, or a split has no usable row.
    """
    name = dataset_name(data)
    shares = (data.test_share, data.validation_share)
    examples = build_examples(read_blocks(data), name, get_task(data.task), *shares, spill_dir)
    limits = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
    examples = limit_rows(examples, limits)
    empty = [s for s in SPLITS if not examples.counts[f"kept_{s}"]]
    if empty:
        raise CotdError(
            f"{name}: no review in split {' or '.join(empty)}. "
            "Give more rows, name a split column (data.columns.split), or raise data.test_share / data.validation_share."
        )
    return examples


def dataset_name(data: DataConfig) -> str:
    """The source's name in each review's id, without the folder of a file."""
    if isinstance(data.source, dict):
        return "+".join(Path(p).name for p in data.source.values())
    return Path(data.source).name if data.source.endswith(FILE_TYPES) else data.source


def noun(data: DataConfig) -> str:
    """What prompts call one text of this source: "review" unless the source or the configuration says otherwise."""
    if data.noun:
        return data.noun
    if isinstance(data.source, str) and assets.is_embedded(data.source):
        return assets.get_asset(data.source).noun
    return "review"


def read_blocks(data: DataConfig) -> Iterator[pd.DataFrame]:
    """The source's rows, a block at a time, with the columns that `build_examples` takes."""
    source = data.source
    if isinstance(source, dict):
        return join_splits((split, read_mapped(path, data.columns)) for split, path in source.items())
    if assets.is_embedded(source):
        asset = assets.get_asset(source)
        if asset.kind != "reviews":
            kinds = ", ".join(assets.PREFIX + a.name for a in assets.ASSETS.values() if a.kind == "reviews")
            raise CotdError(f"data.source '{source}' is a {asset.kind}, not reviews. Embedded reviews: {kinds}.")
        columns = data.columns.model_copy(update={"group": "group"})
        return read_mapped(str(assets.require(source) / "reviews.parquet"), columns)
    if source.endswith(FILE_TYPES):
        return read_mapped(source, data.columns)
    if Path(source).exists() or "/" not in source:
        embedded = [assets.PREFIX + name for name in assets.ASSETS]
        raise CotdError(
            f"data.source '{source}' is not embedded:NAME, a file ending in {', '.join(FILE_TYPES)}, "
            f"or a hub id (OWNER/NAME).{nearest(assets.PREFIX + source, embedded)}"
        )
    return read_hub(source, data.columns)


def read_mapped(path: str, columns: ConfigModel, key: str = "data.columns") -> Iterator[pd.DataFrame]:
    """A file's rows, a block at a time, with mapped columns: see `map_columns`. JSON lines may lack some of them."""
    mapped = list(roles(columns).values())
    for number, block in enumerate(read_file(path)):
        if path.endswith(".jsonl") and (absent := [name for name in mapped if name not in block]):
            if number == 0:  # is it in any line?
                known = dict.fromkeys(name for other in read_file(path) for name in other)
                map_columns(pd.DataFrame(columns=list(known)), columns, path, key)
            block[absent] = None
        yield map_columns(block, columns, path, key)


def join_splits(parts: Iterable[tuple[str, Iterator[pd.DataFrame]]]) -> Iterator[pd.DataFrame]:
    """The rows of each split, with a column that names it."""
    for split, blocks in parts:
        for block in blocks:
            yield block.assign(split=split)


def map_columns(frame: pd.DataFrame, columns: ConfigModel, where: str, key: str = "data.columns") -> pd.DataFrame:
    """Renames the mapped columns to their roles (text, label, split and group), and those of bad rows to problem and line.

    Args:
        where: the file, and key: the block of the study that names the columns, for messages.

    Raises:
        CotdError: all missing columns at once. An absent `label` column is an error only if it was renamed.
    """
    mapped = roles(columns)
    optional = {"label"} if isinstance(columns, Columns) and columns.label == "label" else set()
    existing = [str(name) for name in frame.columns if name not in (PROBLEM, LINE)]
    missing = [
        f"{where}: no column '{name}' ({key}.{role}); it has: {', '.join(existing)}.{nearest(name, existing)}"
        for role, name in mapped.items()
        if name not in frame.columns and role not in optional
    ]
    if missing:
        raise CotdError(*missing)
    result = pd.DataFrame({role: frame[name] for role, name in mapped.items() if name in frame.columns})
    if PROBLEM in frame:
        result["problem"], result["line"] = frame[PROBLEM], frame[LINE]
    if "split" in result:
        bad = frame[PROBLEM].notna() if PROBLEM in frame else [False] * len(result)
        result["split"] = [None if b else parse_split(s, where) for s, b in zip(result["split"], bad, strict=True)]
    return result


def roles(columns: ConfigModel) -> dict[str, str]:
    """Role (text, label, split or group, say) → the column that is mapped to it."""
    return {role: name for role, name in columns.model_dump().items() if name}


def parse_split(value: Any, where: str) -> str:
    """The split that a cell names.

    Raises:
        CotdError: it names none.
    """
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise CotdError(f"{where}: split '{value}' is not train, validation or test. Map it before, or drop the column.")
    return split


def read_hub(source: str, columns: Columns) -> Iterator[pd.DataFrame]:
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
    return join_splits((split, read_split(splits[name], columns, f"{source}/{name}")) for name, split in known.items())


def read_split(split: Any, columns: Columns, where: str) -> Iterator[pd.DataFrame]:
    """A split of a hub data set, a block at a time from the file that it is mapped from."""
    for block in split.with_format("arrow").iter(BLOCK):
        yield map_columns(to_pandas(block), columns, where)
