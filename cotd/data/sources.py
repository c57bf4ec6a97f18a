"""Sources of examples: embedded assets, local files and hub data sets, all read into the same columns."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cotd import assets
from cotd.config.model import ConfigModel
from cotd.data.config import SPLIT_NAMES, SPLITS, Columns, DataConfig, Hub, template_columns
from cotd.data.delimited import DELIMITERS
from cotd.data.examples import Examples, build_examples, limit_rows, unlabelled_notes
from cotd.data.files import BLOCK, ENDINGS, LINE, PROBLEM, file_type, find_files, names_files, read_file, to_pandas
from cotd.errors import CotdError, nearest
from cotd.progress import say
from cotd.tasks.base import Task, cell_text
from cotd.utils.text import first_line

# A file's name that says of which split it is: train.csv, dev.jsonl.gz, test-00000-of-00002.parquet.
SPLIT_FILE = re.compile(rf"({'|'.join(SPLIT_NAMES)})([-_]\d+(-of-\d+)?)?\.", re.IGNORECASE)
# From this similarity on, a column is taken for a misspelling of `label`, which data may lack.
SIMILAR = 0.8
QUOTED_LIST = re.compile(r"\[((?:'[^']*'(?:, )?)+)\]")  # as Python writes a list of names


def load_examples(data: DataConfig, task: Task, spill_dir: Path | None = None, needed: Sequence[str] = SPLITS) -> Examples:
    """The examples of a source, split, cleaned, and limited to the configured number of rows.

    Args:
        spill_dir: a folder on whose disk their texts are kept, see `cotd.data.spill.open_spill_file`.
        needed: splits that must have examples.

    Raises:
        CotdError: the source does not exist, a mapped column is missing, its labels are not the task's, or a needed split has no
            usable row.
    """
    name = dataset_name(data)
    shares = (data.test_share, data.validation_share)
    examples = build_examples(
        read_blocks(data, task), name, task, *shares, spill_dir, read_unlabelled(data, task) if data.unlabelled else ()
    )
    if examples.label_problem:
        raise CotdError(examples.label_problem)
    limits = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
    examples = limit_rows(examples, limits | {"unlabelled": data.unlabelled_rows})
    for note in (*examples.notes, *unlabelled_notes(examples.counts)):
        say(f"  {note}")
    empty = [s for s in needed if not examples.counts[f"kept_{s}"]]
    if empty:
        raise CotdError(
            f"{name}: no example in split {' or '.join(empty)}. "
            "Give more rows, name a split column (data.columns.split), or raise data.test_share / data.validation_share."
        )
    return examples


def dataset_name(data: DataConfig) -> str:
    """What messages call the source: a file by its name."""
    sources = [data.source] if isinstance(data.source, str) else list(data.source.values())
    return " + ".join(Path(source).name if file_type(source) else source for source in sources)


def noun(data: DataConfig, task: Task) -> str:
    """What prompts call one text of this source: as the configuration says, or the source, or the task."""
    if data.noun:
        return data.noun
    if isinstance(data.source, str) and assets.is_embedded(data.source):
        return assets.get_asset(data.source).noun
    return task.noun


def read_unlabelled(data: DataConfig, task: Task) -> Iterator[pd.DataFrame]:
    """The rows of `data.unlabelled`, a block at a time; of a hub data set those of all its splits.

    Raises:
        CotdError: as `read_blocks`.
    """
    columns = data.columns.model_copy(update={"label": None, "split": None})
    hub = data.hub if data.unlabelled == data.source else Hub()
    part = data.model_copy(update={"source": data.unlabelled, "columns": columns, "hub": hub})
    for block in read_blocks(part, task, "data.unlabelled"):
        yield block.drop(columns="split", errors="ignore")  # that its files or the hub name


def read_blocks(data: DataConfig, task: Task, key: str = "data.source") -> Iterator[pd.DataFrame]:
    """The source's rows, a block at a time, with the columns that `build_examples` takes.

    Args:
        key: that names the source, for messages.

    Raises:
        CotdError: the source does not exist, or the task needs options and no column has them.
    """
    source, template = data.source, data.input
    if task.needs_choices and not data.columns.choices:
        raise CotdError(f"task '{task.name}' chooses among each row's own options: name their column in data.columns.choices.")
    if data.hub != Hub() and not (isinstance(source, str) and is_hub_id(source)):
        raise CotdError("data.hub is for a hub data set, and data.source is none. Leave it out, or name one (OWNER/NAME).")
    if isinstance(source, dict):
        if others := [path for path in source.values() if not names_files(path)]:
            raise CotdError(f"data.source: a split is a file that ends in {ENDINGS}, or several; not '{others[0]}'.")
        return join_splits((split, read_files(path, data.columns, template)) for split, path in source.items())
    if assets.is_embedded(source):
        asset = assets.get_asset(source)
        if asset.kind != "examples":
            kinds = ", ".join(assets.PREFIX + a.name for a in assets.ASSETS.values() if a.kind == "examples")
            raise CotdError(f"{key} '{source}' is a {asset.kind}, not examples. Embedded examples: {kinds}.")
        columns = data.columns.model_copy(update={"group": "group"})
        return read_mapped(str(assets.require(source) / "reviews.parquet"), columns, template=template)
    if names_files(source):
        return read_files(source, data.columns, template, splits_by_name=not data.columns.split)
    if not is_hub_id(source):
        embedded = [assets.PREFIX + name for name in assets.ASSETS]
        raise CotdError(
            f"{key} '{source}' is not embedded:NAME, a file ending in {ENDINGS}, a folder of them "
            f"or a hub id (OWNER/NAME).{nearest(assets.PREFIX + source, embedded)}"
        )
    return read_hub(source, data.hub, data.columns, task, template, every_split=key == "data.unlabelled")


def is_hub_id(source: str) -> bool:
    """Whether a source is meant as a data set on the hub."""
    return not (assets.is_embedded(source) or names_files(source) or Path(source).exists()) and "/" in source


def read_files(source: str, columns: Columns, template: str | None, splits_by_name: bool = False) -> Iterator[pd.DataFrame]:
    """The rows of a file, folder, pattern or URL.

    Args:
        splits_by_name: several files may be the splits, as their names say.

    Raises:
        CotdError: the names of some files say a split, and those of others do not.
    """
    files = find_files(source)
    splits = {file: match[1].lower() for file in files if (match := SPLIT_FILE.match(Path(file).name))}
    if not splits_by_name or len(files) < 2 or not splits:
        return itertools.chain.from_iterable(read_mapped(file, columns, template=template) for file in files)
    if other := next((file for file in files if file not in splits), None):
        named = ", ".join(Path(file).name for file in list(splits)[:3])
        raise CotdError(
            f"'{source}' has files named after splits ({named}) and others ({Path(other).name}), whose split is not known. "
            "Name the files by split: data.source: {train: …, validation: …, test: …}."
        )
    return join_splits((SPLIT_NAMES[split], read_mapped(file, columns, template=template)) for file, split in splits.items())


def read_mapped(
    path: str, columns: ConfigModel, key: str = "data.columns", template: str | None = None
) -> Iterator[pd.DataFrame]:
    """A file's rows, a block at a time, with mapped columns: see `map_columns`. JSON lines may lack some of them."""
    mapped = [name for name, _ in mapped_columns(columns, key, template)]
    for number, block in enumerate(read_file(path)):
        if number == 0 and isinstance(columns, Columns):
            if unread := unread_split(block, columns):
                say(
                    f"  note: {path} has a column '{unread}' that names splits, and is not read. To use it: "
                    f"data.columns.split={unread}"
                )
            say_unlabelled(block, columns, path, template)
        if file_type(path) in (".jsonl", ".json") and (absent := [name for name in mapped if name not in block]):
            if number == 0:  # is it in any line?
                known = dict.fromkeys(name for other in read_file(path) for name in other)
                map_columns(pd.DataFrame(columns=list(known)), columns, path, key, template)
            block[absent] = None
        yield map_columns(block, columns, path, key, template)


def unread_split(block: pd.DataFrame, columns: Columns) -> str | None:
    """A column of split names that nothing is mapped to; None if there is none."""
    others = [name for name in block.columns if columns.split is None and name not in roles(columns).values()]
    for name in others:
        cells = (
            {str(cell).strip().lower() for cell in block[name].dropna().unique()}
            if block[name].map(np.isscalar).all()
            else set()
        )
        if cells and cells <= SPLIT_NAMES.keys():
            return str(name)
    return None


def say_unlabelled(block: pd.DataFrame, columns: Columns, where: str, template: str | None) -> None:
    """Says which columns are not read if none of them is taken for the labels: a label is never guessed."""
    used = {*roles(columns).values(), *template_columns(template or ""), PROBLEM, LINE}
    others = [str(name) for name in block.columns if name not in used]
    if columns.label and columns.label not in block.columns and others:
        say(
            f"  note: {where} has no column '{columns.label}', so that no example has a gold label; not read: {', '.join(others)}. If "
            "one of them has the labels: data.columns.label=NAME"
        )


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
        CotdError: all missing columns at once. An absent `label` column is an error only if it was renamed, or one is there
            that may be meant.
    """
    optional = {f"{key}.label"} if isinstance(columns, Columns) and columns.label == "label" else set()
    existing = [str(name) for name in frame.columns if name not in (PROBLEM, LINE)]
    missing = []
    for name, named_by in mapped_columns(columns, key, template):
        meant = similar_column(name, existing)
        if name in frame.columns or (named_by in optional and meant is None):
            continue
        listed = ", ".join(column if column == column.strip() else repr(column) for column in existing)
        unlabelled = f" If it has no labels: {named_by}=null." if named_by in optional else ""
        hint = f" Did you mean {meant!r}?" if meant is not None else nearest(name, existing)
        if len(existing) == 1 and name in existing[0]:
            hint = f" If other characters than {' '.join(map(repr, DELIMITERS))} separate its cells: save it with commas."
        missing.append(f"{where}: no column '{name}' ({named_by}); it has: {listed}.{hint}{unlabelled}")
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


def similar_column(name: str, existing: list[str]) -> str | None:
    """The column whose name differs in space, case or a letter or two; None if there is no such column."""
    folded = {" ".join(column.split()).casefold(): column for column in reversed(existing)}
    close = difflib.get_close_matches(" ".join(name.split()).casefold(), folded, n=1, cutoff=SIMILAR)
    return folded[close[0]] if close else None


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
    if value is None or value != value:
        raise CotdError(f"{where}: a row's split is empty. Give all rows one, or drop the column.")
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise CotdError(f"{where}: split '{value}' is not train, validation or test. Map it before, or drop the column.")
    return split


def read_hub(
    source: str, hub: Hub, columns: Columns, task: Task, template: str | None, every_split: bool = False
) -> Iterator[pd.DataFrame]:
    """A hub data set's splits, through `datasets` (which honours HF_ENDPOINT), a block at a time.

    Args:
        every_split: also those that are not train, validation or test (IMDb's `unsupervised`), as train.
    """
    # Else `datasets` tells an outside host, whatever HF_ENDPOINT says, the name of each data set that is loaded.
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        splits = datasets.load_dataset(source, hub.config, revision=hub.revision)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        advice = "Check its name and the network (HF_ENDPOINT names another hub), or use embedded:rotten-tomatoes, which needs neither."
        if "config" in str(error).lower() and (listed := QUOTED_LIST.search(str(error))):
            advice = f"Name one of its configurations, data.hub.config: {listed[1].replace(chr(39), '')}."
        elif "scripts" in str(error):
            advice = "It is a program, which is not run. Look for a copy of it in Parquet, or download the files."
        raise CotdError(f"cannot load the hub data set '{source}': {first_line(error)}. {advice}") from error
    default = "train" if every_split else None
    known = {str(name): split for name in splits if (split := SPLIT_NAMES.get(str(name).lower(), default))}
    if known and (others := [str(name) for name in splits if str(name) not in known]):
        say(f"  note: of {source} the splits {', '.join(others)} are left out")
    if not known:
        raise CotdError(f"{source}: none of its splits ({', '.join(map(str, splits))}) is named {', '.join(SPLIT_NAMES)}.")
    return join_splits(
        (split, read_split(splits[name], columns, f"{source}/{name}", task, template)) for name, split in known.items()
    )


def read_split(split: Any, columns: Columns, where: str, task: Task, template: str | None) -> Iterator[pd.DataFrame]:
    """A split of a hub data set, a block at a time from the file that it is mapped from.

    Raises:
        CotdError: its class labels have names that the task does not know, see `class_names`.
    """
    feature = split.features.get(columns.label) if columns.label else None
    names = class_names(getattr(feature, "names", None), task, where, columns.label)
    for number, block in enumerate(split.with_format("arrow").iter(BLOCK)):
        frame = to_pandas(block)
        if number == 0:
            say_unlabelled(frame, columns, where, template)
        if names and pd.api.types.is_integer_dtype(frame[columns.label].dtype):
            frame[columns.label] = [names[code] if 0 <= code < len(names) else None for code in frame[columns.label]]
        yield map_columns(frame, columns, where, template=template)


def class_names(names: list[str] | None, task: Task, where: str, column: str | None) -> list[str] | None:
    """The names by which class labels are read; None if their numbers are, for a column of anything else, too.

    Numbers count only for as many labels as the task has, whose names are numbers themselves: Yelp's are "1" and "2".

    Raises:
        CotdError: the task does not know the names: which number stands for which label would be a guess.
    """
    if not names or not task.labels:
        return names
    known = [task.parse(name) for name in names]
    if None not in known and len(set(known)) == len(known):
        return names
    if len(names) == len(task.labels) and all(name.strip().isdecimal() for name in names):
        return None
    raise CotdError(
        f"{where}: the classes of column '{column}' are {', '.join(names)}, and labels of task '{task.name}' are "
        f"{', '.join(task.labels)}. Name every class in task.labels, with its other spellings, as in {{positive: [{names[-1]}]}}."
    )
