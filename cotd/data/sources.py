"""Sources of reviews: embedded assets, local files and hub data sets, all giving the same Review table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cotd import assets
from cotd.config.model import ConfigModel
from cotd.data.config import Columns, DataConfig
from cotd.data.examples import Examples, build_examples, limit_rows
from cotd.data.files import BLOCK, FILE_TYPES, LINE, PROBLEM, read_file, with_types
from cotd.data.table import SPLITS
from cotd.errors import CotdError, nearest
from cotd.tasks.registry import get_task
from cotd.utils.text import first_line

# The hub's names of splits. IMDb's 50,000 reviews without labels, `unsupervised`, are there to pretrain on only.
HUB_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
UNLABELLED_HUB_SPLITS = {"unsupervised": "train", "unlabelled": "train", "unlabeled": "train"}


# Rows in blocks, at least one, from the first at each call.
Read = Callable[[], Iterator[pd.DataFrame]]


def load_examples(data: DataConfig, spill_dir: Path | None = None) -> Examples:
    """The reviews of a source, split, cleaned, and limited to the configured number of rows.

    Args:
        spill_dir: a folder on whose disk their texts are kept, see `cotd.data.spill.scratch_file`.

    Raises:
        CotdError: the source does not exist, a mapped column is missing, or nothing usable is in it.
    """
    task = get_task(data.task)
    reviews = build_examples(read_blocks(data), dataset_name(data), task, data.test_share, data.validation_share, spill_dir)
    limits = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
    reviews = limit_rows(reviews, limits)
    missing = [s for s in SPLITS if not reviews.counts[f"kept_{s}"]]
    if missing:
        raise CotdError(
            f"{dataset_name(data)}: no review in split {' or '.join(missing)}. "
            "Give more rows, name a split column (data.columns.split), or raise data.test_share / data.validation_share."
        )
    return reviews


def embedded_reviews(name: str) -> Examples:
    """All reviews of an embedded source, with the default splits."""
    return load_examples(DataConfig(source=f"{assets.PREFIX}{name}", columns=Columns(group="group")))


def dataset_name(data: DataConfig) -> str:
    """What goes into each review's id: the source's name, never the folder it lies in."""
    if isinstance(data.source, dict):
        return "+".join(Path(p).name for p in data.source.values())
    return Path(data.source).name if is_file(data.source) else data.source


def noun(data: DataConfig) -> str:
    """What prompts call one text of this source: "review" unless the source or the configuration says more."""
    if data.noun:
        return data.noun
    if isinstance(data.source, str) and assets.is_embedded(data.source):
        return assets.get_asset(data.source).noun
    return "review"


def is_file(source: str) -> bool:
    return source.endswith(FILE_TYPES)


def read_rows(data: DataConfig, unlabelled: bool = False) -> pd.DataFrame:
    """The rows of `read_blocks` in one frame."""
    return pd.concat(read_blocks(data, unlabelled), ignore_index=True)


def read_blocks(data: DataConfig, unlabelled: bool = False) -> Iterator[pd.DataFrame]:
    """The source's rows, a block at a time, with columns `text`, and where they exist `label`, `split` and `group`; `problem`,
    `line`: see `build_examples`.

    Args:
        unlabelled: of a hub data set, read the split that holds no labels instead of those that do.
    """
    if isinstance(data.source, dict):
        return joined([(s, partial(read_mapped, path, data.columns)) for s, path in data.source.items()])
    if assets.is_embedded(data.source):
        asset = assets.get_asset(data.source)
        if asset.kind != "reviews":
            kinds = ", ".join(assets.PREFIX + a.name for a in assets.ASSETS.values() if a.kind == "reviews")
            raise CotdError(f"data.source '{data.source}' is a {asset.kind}, not reviews. Embedded reviews: {kinds}.")
        columns = data.columns.model_copy(update={"group": "group"})
        blocks = read_file(str(assets.require(data.source) / "reviews.parquet"))
        return (map_columns(block, columns, data.source) for block in blocks)
    if is_file(data.source):
        return read_mapped(data.source, data.columns)
    if Path(data.source).exists() or "/" not in data.source:
        raise CotdError(
            f"data.source '{data.source}' is neither embedded:NAME, nor a file ending in {', '.join(FILE_TYPES)}, "
            f"nor a hub id (OWNER/NAME).{nearest(assets.PREFIX + data.source, [assets.PREFIX + a for a in assets.ASSETS])}"
        )
    return read_hub(data.source, data.columns, UNLABELLED_HUB_SPLITS if unlabelled else HUB_SPLITS)


def read_mapped(path: str, columns: ConfigModel, key: str = "data.columns") -> Iterator[pd.DataFrame]:
    """A file's rows, a block at a time, with mapped columns: see `map_columns`. JSON lines may lack some of them."""
    wanted = list(roles(columns).values())
    for number, block in enumerate(read_file(path)):
        if path.endswith(".jsonl") and (absent := [name for name in wanted if name not in block]):
            if number == 0:  # is it in any line?
                known = dict.fromkeys(name for other in read_file(path) for name in other)
                map_columns(pd.DataFrame(columns=list(known)), columns, path, key)
            block[absent] = None
        yield map_columns(block, columns, path, key)


def joined(parts: Sequence[tuple[str, Read]]) -> Iterator[pd.DataFrame]:
    """The rows of some splits, as in one frame: a column of whole numbers here and of fractions there is of fractions."""
    heads = [block.head(1) for _, read in parts for block in itertools.islice(read(), 1)]
    types = dict(pd.concat(heads).dtypes) if heads else {}
    for split, read in parts:
        for block in read():
            yield with_types(block.assign(split=split), types)


def map_columns(frame: pd.DataFrame, columns: ConfigModel, where: str, key: str = "data.columns") -> pd.DataFrame:
    """Renames the mapped columns to their roles (text, label, split and group), and those of bad rows to problem and line.

    Args:
        where: the file, and key: the block of the study that names the columns, for messages.

    Raises:
        CotdError: all missing columns at once. An absent `label` column is an error only if it was renamed.
    """
    wanted = roles(columns)
    optional = {"label"} if isinstance(columns, Columns) and columns.label == "label" else set()
    missing = [(role, name) for role, name in wanted.items() if name not in frame.columns and role not in optional]
    if missing:
        have = ", ".join(str(name) for name in frame.columns if name not in (PROBLEM, LINE))
        raise CotdError(
            *(
                f"{where}: no column '{name}' ({key}.{role}); it has: {have}.{nearest(name, list(frame.columns))}"
                for role, name in missing
            )
        )
    mapped = pd.DataFrame({role: frame[name] for role, name in wanted.items() if name in frame.columns})
    if PROBLEM in frame:
        mapped["problem"], mapped["line"] = frame[PROBLEM], frame[LINE]
    if "split" in mapped:
        broken = frame[PROBLEM].notna() if PROBLEM in frame else [False] * len(mapped)
        mapped["split"] = [None if bad else check_split(s, where) for s, bad in zip(mapped["split"], broken, strict=True)]
    return mapped


def roles(columns: ConfigModel) -> dict[str, str]:
    """Role (text, label, split or group, say) → the column that is mapped to it."""
    return {role: name for role, name in columns.model_dump().items() if name}


def check_split(value: Any, where: str) -> str:
    split = HUB_SPLITS.get(str(value).strip().lower())
    if split is None:
        raise CotdError(f"{where}: split '{value}' is not train, validation or test; map it before, or drop the column.")
    return split


def read_hub(source: str, columns: Columns, names: dict[str, str] = HUB_SPLITS) -> Iterator[pd.DataFrame]:
    """A hub data set's splits, those that `names` maps, through `datasets` (which honours HF_ENDPOINT), a block at a time."""
    import os

    # Else `datasets` tells an outside host, whatever HF_ENDPOINT says, the name of each data set that is loaded.
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        splits = datasets.load_dataset(source)
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetNotFoundError) as error:
        raise CotdError(
            f"cannot load the hub data set '{source}': {first_line(error)}. "
            "Check its name and the network (HF_ENDPOINT names another hub), or use embedded:rotten-tomatoes, "
            "which needs neither."
        ) from error
    parts: list[tuple[str, Read]] = []
    for name, split in splits.items():
        if names.get(str(name)):
            parts.append((names[str(name)], partial(read_split, split, columns, f"{source}/{name}")))
    if not parts:
        raise CotdError(f"{source}: none of its splits ({', '.join(map(str, splits))}) is named {', '.join(names)}.")
    return joined(parts)


def read_split(split: Any, columns: Columns, where: str) -> Iterator[pd.DataFrame]:
    """A split of a hub data set, whose file is mapped into memory: what was read counts as this process's until it is needed."""
    missing = [f.name for f in split.data.schema if pa.types.is_integer(f.type) and split.data.column(f.name).null_count]
    for block in split.to_pandas(batch_size=BLOCK, batched=True):
        yield map_columns(with_types(block, dict.fromkeys(missing, np.dtype("float64"))), columns, where)
