"""Examples: how rows of any source become examples, how they are split, and fixed samples of them.

An example has an `id` (16 hex digits), a `text`, a `label` (one of the task's, or None) and a `split` ("train", "validation"
or "test"). While a source is read, some 10 bytes of each of its rows are in memory, and the rest on disk: the rows are looked through
in buckets by a hash, a hundred thousand at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from cotd.data.config import SPLITS
from cotd.data.rows import NO_GROUP, TEST, TRAIN, VALIDATION, RowReader, hash_number
from cotd.data.spill import Column
from cotd.data.table import NONE, ExampleTable, QuarantinedRows, decode_ids, in_blocks
from cotd.errors import CotdError
from cotd.tasks.base import Task

# What is kept of an example, and by which hash it is ordered.
EXAMPLE = np.dtype([("rank", "u8"), ("id", "u8"), ("label", "i4"), ("split", "i1"), ("number", "u4")])
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # ids, labels, splits and numbers

# A text found in two splits stays in the more protected one: the test set is never trained on.
PROTECTION = {"train": 0, "validation": 1, "test": 2}
PROTECTIONS = np.array([PROTECTION[name] for name in SPLITS], dtype=np.int8)
CONTRADICTORY = "repeated with different labels"
DIVIDED_GROUP = "its group is also in a split that the test protects"
MAX_NOTED = 5  # reasons that are told


@dataclass
class Examples:
    """A source's examples, and its other rows.

    Attributes:
        rows: the examples, ordered by a hash of the id within each split. The first n rows of a split are a fixed
            pseudo-random sample, and smaller samples are nested in larger ones.
        quarantined: the rows that cannot be used.
        counts: rows read, repeats dropped, quarantined, kept by split.
        notes: what was decided that the source does not say: splits that were carved, rows that were left out.
        label_problem: what is wrong if so many labels are not the task's that the mapping must be, or None.
        unlabelled: more texts, none of which is in validation or test, in the same order; `limit_rows` has them join the training
            split.
    """

    rows: ExampleTable
    quarantined: QuarantinedRows
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    label_problem: str | None = None
    unlabelled: ExampleTable | None = None

    @cached_property
    def table(self) -> pd.DataFrame:
        """The examples with their texts, in memory."""
        return self.rows.frame()

    def split(self, name: str) -> pd.DataFrame:
        """One split's examples, in memory."""
        return self.rows.split(name).frame()

    def digest(self) -> str:
        """Content digest: changes when any text, option, label, split or group does."""
        return self.rows.digest


def build_examples(
    rows: pd.DataFrame | Iterable[pd.DataFrame],
    dataset: str,
    task: Task,
    test_share: float = 0.2,
    validation_share: float = 0.1,
    spill_dir: Path | None = None,
    unlabelled: Iterable[pd.DataFrame] = (),
) -> Examples:
    """Turns a source's rows into examples.

    Args:
        rows: whole or in blocks (at least one), with columns `text`, and optionally `label`, `split`, `group` (texts of one
            group, a movie's say, never stay in two splits, given ones too), `choices` (a row's own options), `problem` (why a
            row cannot be used) and `line` (such a row as it was). Rows without a split are carved by a hash of their group, or of their
            text, into test, validation and train. A source with splits that lacks validation or test has it carved from its
            train rows in this way.
        test_share, validation_share: fractions of the rows to carve.
        spill_dir: a folder on whose disk the texts are kept, see `cotd.data.spill.open_spill_file`.
        unlabelled: blocks of such rows without label and split. Texts that are in validation or test, or of a group that is,
            are dropped and counted.

    Returns:
        Examples: equal texts (after cleaning, whatever the case) are one example. Repeats are dropped and counted.
        Repeats whose labels differ, rows without a text and labels outside the task's set are quarantined. A text in two
        splits stays in the one that protects the test.

    Raises:
        CotdError: no example is left.
    """
    reader = RowReader(dataset, task, test_share, validation_share, spill_dir)
    reader.add_all([rows] if isinstance(rows, pd.DataFrame) else rows)
    own = len(reader.texts)
    reader.add_all(unlabelled)
    names, read = reader.names(), len(reader.texts)
    splits = np.full(read, TRAIN, dtype=np.int8)
    sound, kept, added, protected = (np.zeros(read, dtype=bool) for _ in range(4))
    bad: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # positions, labels and reasons

    def quarantine(positions: np.ndarray, rows: np.ndarray, reason: str) -> None:
        if len(positions):
            bad.append((positions, rows["label"], np.full(len(positions), reader.reason(reason), dtype=np.int32)))

    for start, part in reader.rows.chunks():
        end = start + len(part)
        splits[start:end] = assign_splits(part["given"], part["carved"], part["low"], reader.given)
        sound[start:end] = good = part["reason"] == NONE
        bad.append((start + np.flatnonzero(~good), part["label"][~good], part["reason"][~good]))
    splits[own:] = TRAIN
    for positions, part in reader.rows.buckets("group") if reader.grouped else ():
        mine, groups = positions < own, part["group"]
        divided = divided_groups(groups, splits[positions], np.flatnonzero(mine & sound[positions]))
        quarantine(positions[divided], part[divided], DIVIDED_GROUP)
        sound[positions[divided]] = False
        held_out = groups[mine & (splits[positions] != TRAIN) & (groups != NO_GROUP)]
        protected[positions[~mine & np.isin(groups, held_out)]] = True
    for positions, part in reader.rows.buckets("id"):
        mine, usable, of = positions < own, sound[positions], splits[positions]
        chosen, contradictory = unique_rows(part, of, np.flatnonzero(mine & usable))
        kept[positions[chosen]] = True
        quarantine(positions[contradictory], part[contradictory], CONTRADICTORY)
        new, _ = unique_rows(part, of, np.flatnonzero(~mine & usable))
        added[positions[new]] = True
        protected[positions[new[np.isin(part["id"][new], part["id"][mine & (of != TRAIN)])]]] = True
    sound_rows, sound_texts = int(sound[:own].sum()), int(sound[own:].sum())
    del sound

    columns = [np.concatenate(column) for column in zip(*bad, strict=True)] if bad else [np.empty(0, dtype=np.int64)] * 3
    positions, labels, reasons = (column[np.argsort(columns[0])] for column in columns)
    quarantined = QuarantinedRows(labels, splits[positions], positions, reasons, reader.texts, names, list(reader.reasons))
    counted = quarantined.counts()
    if not kept.any():
        why = "; ".join(f"{n} rows: {reason}" for reason, n in counted.most_common(3))
        advice = reader.label_problem() or "Check the file and the column mapping (data.columns)."
        raise CotdError(f"{dataset}: no usable example among {read} rows{f' ({why})' if why else ''}. {advice}")

    def table_of(mask: np.ndarray) -> ExampleTable:
        def parts() -> Iterator[Columns]:
            for start, part in reader.rows.chunks():
                rows = np.flatnonzero(mask[start : start + len(part)])
                yield part["id"][rows], part["label"][rows], splits[start + rows], start + rows

        files = reader.texts, names, reader.choices, reader.groups if reader.grouped else None
        return ExampleTable(*in_order(parts(), spill_dir), *files)

    table, more = table_of(kept), table_of(added & ~protected) if read > own else None
    repeats = sound_rows - counted[CONTRADICTORY] - len(table)
    counts = {"rows": read, "repeats": repeats, "quarantined": len(quarantined)}
    counts |= {f"kept_{name}": int((table.splits == s).sum()) for s, name in enumerate(SPLITS)}
    if more is not None:
        held_out, repeated = int((added & protected).sum()), sound_texts - int(added.sum())
        counts |= {"unlabelled": len(more), "unlabelled_held_out": held_out, "unlabelled_repeats": repeated}
    notes = (*carving_notes(reader.given, table, counts), *reader.notes(), *quarantine_notes(quarantined))
    return Examples(table, quarantined, counts, [f"{dataset}: {note}" for note in notes], reader.label_problem(), more)


def in_order(parts: Iterable[Columns], spill_dir: Path | None) -> Columns:
    """The examples by split, and in each by a hash of the id."""
    examples, counts = Column(EXAMPLE, spill_dir), np.zeros(len(SPLITS), dtype=np.int64)
    for columns in parts:
        block = np.empty(len(columns[0]), dtype=EXAMPLE)
        block["id"], block["label"], block["split"], block["number"] = columns
        block["rank"] = [hash_number(f"order\n{i}") for i in decode_ids(columns[0])]
        examples.add(block)
        counts += np.bincount(block["split"], minlength=len(SPLITS))
    ids, labels, splits, numbers = (np.empty(len(examples), dtype=EXAMPLE[name]) for name in ("id", "label", "split", "number"))
    alphabetical = np.argsort(SPLITS)
    next_row = dict(zip(alphabetical.tolist(), np.cumsum([0, *counts[alphabetical]]).tolist(), strict=False))
    for _, block in examples.buckets("rank"):
        block = block[np.argsort(block["rank"])]
        for split, row in next_row.items():
            part = block[block["split"] == split]
            place = slice(row, row + len(part))
            ids[place], labels[place], splits[place], numbers[place] = part["id"], part["label"], split, part["number"]
            next_row[split] += len(part)
    return ids, labels, splits, numbers


def assign_splits(given: np.ndarray, carved: np.ndarray, low: np.ndarray, named: Collection[int]) -> np.ndarray:
    """A split for each row; given splits are kept.

    Args:
        given: (N,) codes in SPLITS, or NONE.
        carved: (N,) codes to use if no row of the source has a given one.
        low: (N,) whether a row of train goes to validation if no row is given that, and some are given test.
        named: those that any row of the source is given.
    """
    if not named:
        return carved
    splits = np.where(given == NONE, np.int8(TRAIN), given)
    train = splits == TRAIN
    if TEST not in named:
        splits[train & (carved == TEST)] = TEST
    if VALIDATION not in named:
        splits[train & ((carved == VALIDATION) if TEST not in named else low)] = VALIDATION
    return splits


def divided_groups(groups: np.ndarray, splits: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Those of the rows `sound` whose group also has rows in a more protected split."""
    sound = sound[groups[sound] != NO_GROUP]
    protection = PROTECTIONS[splits[sound]]
    _, group = np.unique(groups[sound], return_inverse=True)
    highest = np.zeros(len(sound), dtype=np.int8)
    np.maximum.at(highest, group, protection)
    return sound[protection < highest[group]]


def carving_notes(given: Collection[int], table: ExampleTable, counts: dict[str, int]) -> list[str]:
    """What was carved of a source that lacks splits."""
    lacking = [name for code, name in enumerate(SPLITS) if name != "train" and code not in given]
    if not lacking:
        return []
    carved = " and ".join(f"{counts[f'kept_{name}']:,} {name}" for name in lacking)
    by = "groups" if table.groups is not None else "a hash of each text"
    return [
        f"no {' and no '.join(lacking)} split is given; {carved} examples are carved by {by}, {counts['kept_train']:,} are left to train"
    ]


def quarantine_notes(quarantined: QuarantinedRows) -> list[str]:
    """How many rows cannot be used, and why."""
    if not len(quarantined):
        return []
    reasons = "; ".join(f"{count:,} × {reason}" for reason, count in quarantined.counts().most_common(MAX_NOTED))
    return [f"quarantined rows: {reasons}"]


def unique_rows(rows: np.ndarray, splits: np.ndarray, sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the row that stands for each text, the rows of texts whose labels differ), among the rows `sound`.

    Of a text's copies the most protected split counts first, then a labelled copy before an unlabelled one, then a hash
    of how it is written, and so not the order of rows.

    Args:
        rows: (N,) ROW.
    """
    if not len(sound):
        return sound, sound
    ids, labels = rows["id"][sound], rows["label"][sound]
    rank = (labels == NONE) - 2 * PROTECTIONS[splits[sound]]
    order = np.lexsort((rows["spelling"][sound], rank, ids))
    starts = np.flatnonzero(np.concatenate([[True], ids[order[1:]] != ids[order[:-1]]]))
    ordered = labels[order]
    lowest = np.minimum.reduceat(np.where(ordered == NONE, np.iinfo(ordered.dtype).max, ordered), starts)
    differ = np.maximum.reduceat(ordered, starts) > lowest
    sizes = np.diff(np.append(starts, len(order)))
    return sound[order[starts[~differ]]], sound[order[np.repeat(differ, sizes)]]


def limit_rows(examples: Examples, limits: dict[str, int | None]) -> Examples:
    """The first `limits[split]` examples of each split (all if None): nested, the same on every machine.

    The first `limits["unlabelled"]` of the unlabelled texts that are not among them join the training split.
    """
    rows, counts = examples.rows, dict(examples.counts)
    if any(limits.get(name) is not None for name in SPLITS):
        parts = [np.flatnonzero(rows.splits == s)[: limits.get(name)] for s, name in enumerate(SPLITS)]
        rows = rows.take(np.concatenate(parts))
    if examples.unlabelled is not None:
        new = np.flatnonzero(~np.isin(examples.unlabelled.ids, rows.ids))
        counts["unlabelled_repeats"] += len(examples.unlabelled) - len(new)
        new = new[: limits.get("unlabelled")]
        counts["unlabelled"] = len(new)
        both = (table.take(part) for table in (rows, examples.unlabelled.take(new)) for part in in_blocks(len(table)))
        columns = in_order(((t.ids, t.labels, t.splits, t.numbers) for t in both), rows.texts.spill_dir)
        rows = ExampleTable(*columns, rows.texts, rows.names, rows.choices, rows.groups)
    counts |= {f"kept_{name}": int((rows.splits == s).sum()) for s, name in enumerate(SPLITS)}
    return replace(examples, rows=rows, counts=counts, unlabelled=None)


def unlabelled_notes(counts: Mapping[str, int]) -> list[str]:
    """What became of the texts without gold, by the counts of `limit_rows`."""
    if "unlabelled" not in counts:
        return []
    reasons = {"in validation or test": counts["unlabelled_held_out"], "repeated": counts["unlabelled_repeats"]}
    dropped = "; ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    left_out = f"; left out: {dropped}" if dropped else ""
    return [f"{counts['unlabelled']:,} of the {counts['kept_train']:,} training examples are unlabelled texts{left_out}"]


def select_fraction(train: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """The first `fraction` of the training examples, at least one.

    Their order is a hash of the id: a pseudo-random sample, the same for every method and seed, and nested in larger ones.
    """
    return train.head(fraction_rows(len(train), fraction))


def fraction_rows(rows: int, fraction: float) -> int:
    """The number of training examples that a fraction stands for."""
    return max(1, round(rows * fraction))
