"""Training pairs as token ids: made once for a study, kept as arrays that its trials map into memory.

A folder of the cache is named by a digest of all that decides its content, and holds

    tokens.npy   every distinct input and target, one after another
    pairs.npy    a row a training pair: its review, its task, where its tokens begin and end
    reviews.npy  a row a review that has pairs, in the order of the training split
    about.json   the label words, and how many training reviews there are
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd

from cotd.config.digest import digest
from cotd.data.truncation import Truncation, tail_length, truncate
from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.teachers.filters import choose_annotations
from cotd.training.methods import METHODS
from cotd.training.pairs import training_pairs
from cotd.training.trial import Trial
from cotd.utils.files import read_json, replacing, write_json
from cotd.utils.iteration import find_sublist

TARGET_KINDS = ("label", "rationale", "joint")
FORMAT = 1  # raised when the same trial would be encoded otherwise
PAIR = np.dtype(
    [
        ("task", "u1"), ("weight", "<f8"), ("word", "<i2"), ("cut_input", "?"), ("cut_target", "?"),
        ("input", "<i8"), ("input_length", "<i4"), ("target", "<i8"), ("target_length", "<i4"),
    ]
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class EncodedPairs(Sequence[dict[str, Any]]):
    """A sequence of reviews with their encoded pairs; see `__getitem__`.

    Attributes:
        tokens: (T,) token ids.
        pairs: (P,) of dtype PAIR, the pairs of one review beside each other.
        reviews: (R,) with fields `id`, `position` in the training split, `first` of its pairs, and one past the `last`.
        words: the label words that `word` of a pair counts through.
        train_rows: how many training reviews there are, with and without pairs.
        rationale_weight: what the weights of rationale pairs are multiplied by.
    """

    tokens: np.ndarray
    pairs: np.ndarray
    reviews: np.ndarray
    words: list[str]
    train_rows: int
    rationale_weight: float = 1.0

    def __len__(self) -> int:
        return len(self.reviews)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """One review: its id, how many of its inputs and targets were cut, and by task its (input, target, weight)s."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        review = self.reviews[index]
        pairs = self.pairs[review["first"] : review["last"]]
        row: dict[str, Any] = {task: [] for task in TARGET_KINDS}
        for pair in pairs:
            task = TARGET_KINDS[pair["task"]]
            source = self.tokens[pair["input"] : pair["input"] + pair["input_length"]].tolist()
            target = self.tokens[pair["target"] : pair["target"] + pair["target_length"]].tolist()
            weight = float(pair["weight"]) * (self.rationale_weight if task == "rationale" else 1.0)
            row[task].append((source, target, weight))
        cut = {"cut_inputs": int(pairs["cut_input"].sum()), "cut_targets": int(pairs["cut_target"].sum())}
        return {"review_id": str(review["id"]), **cut, **row}

    def head(self, train_reviews: int) -> EncodedPairs:
        """The part that belongs to the first so many training reviews."""
        rows = int(np.searchsorted(self.reviews["position"], train_reviews))
        last = int(self.reviews["last"][rows - 1]) if rows else 0
        return replace(self, reviews=self.reviews[:rows], pairs=self.pairs[:last])

    def counts(self) -> dict[str, int]:
        """Pairs, and how many of their inputs and targets were cut to the limits."""
        cut = {"cut_inputs": int(self.pairs["cut_input"].sum()), "cut_targets": int(self.pairs["cut_target"].sum())}
        return {"train_pairs": len(self.pairs), **cut}

    def label_words(self) -> list[str]:
        """The distinct label words among the targets."""
        return [self.words[i] for i in np.unique(self.pairs["word"]) if i >= 0]

    def save(self, folder: Path) -> None:
        """Writes the arrays to a folder that appears when it is complete."""
        try:
            with replacing(folder) as scratch:
                scratch.mkdir(parents=True)
                for name in ("tokens", "pairs", "reviews"):
                    np.save(scratch / f"{name}.npy", getattr(self, name))
                write_json(scratch / "about.json", {"words": self.words, "train_rows": self.train_rows})
        except OSError:  # another process was first: what it made is the same
            if not folder.is_dir():
                raise

    @classmethod
    def open(cls, folder: Path) -> EncodedPairs:
        """Maps a saved folder into memory: its pages are shared by all processes that read them."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tokens", "pairs", "reviews")}
        return cls(**arrays, **read_json(folder / "about.json"))


def encode_pairs(
    pairs: pd.DataFrame,
    tokenizer: Any,
    max_input: int,
    max_target: int,
    answer_mark: str = Task.answer_mark,
    positions: Mapping[str, int] | None = None,
    truncation: Truncation = "head",
) -> EncodedPairs:
    """Training pairs (PAIR_COLUMNS, those of a review beside each other) as token ids, in the same order.

    Inputs and targets are cut to the limits, their last token staying the end of sequence. Where a target is a rationale
    and a label, the rationale is what is cut.

    Args:
        positions: review id → its place in the training split; by default they are counted as they come.
        truncation: what stays of an input that is too long; of a target it is the beginning.
    """
    inputs = tokenizer(list(pairs["input"]))["input_ids"]
    targets = tokenizer(text_target=list(pairs["target"]))["input_ids"]
    mark = tokenizer(text_target=answer_mark, add_special_tokens=False)["input_ids"]
    tokens = array("i")
    places: dict[tuple[bool, str], tuple[int, int]] = {}  # what is there already, as an input for N rationales is

    def place(key: tuple[bool, str], ids: list[int]) -> tuple[int, int]:
        if key not in places:
            places[key] = (len(tokens), len(ids))
            tokens.extend(ids)
        return places[key]

    words: list[str] = []
    tail = tail_length(truncation, max_input)
    rows = np.zeros(len(pairs), dtype=PAIR)
    for i, (pair, source, target) in enumerate(zip(pairs.itertuples(), inputs, targets, strict=True)):
        after = find_sublist(target[::-1], mark[::-1]) if pair.task == "joint" else None  # tokens after the last mark
        if pair.task == "joint" and after is None:
            raise CotdError(f"the base model's tokenizer does not keep '{answer_mark}' apart from what is around it.")
        keep = 1 if after is None else after + len(mark)
        word = -1
        if pair.task != "rationale":
            name = pair.target.rsplit(f"{answer_mark} ", maxsplit=1)[-1]
            word = words.index(name) if name in words else len(words)
            words += [name] if word == len(words) else []
        rows[i] = (
            TARGET_KINDS.index(pair.task), pair.weight, word, len(source) > max_input, len(target) > max_target,
            *place((False, pair.input), truncate(source, max_input, tail)),
            *place((True, f"{pair.task} {pair.target}"), truncate(target, max_target, keep)),
        )  # fmt: skip
    ids = pairs["review_id"].to_numpy(dtype=str)
    first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]) if len(ids) else np.zeros(0, dtype=np.int64)
    reviews = np.zeros(
        len(first), dtype=[("id", ids.dtype if len(ids) else "<U1"), ("position", "<i8"), ("first", "<i8"), ("last", "<i8")]
    )
    reviews["id"], reviews["first"], reviews["last"] = ids[first], first, np.r_[first[1:], len(ids)]
    reviews["position"] = range(len(first)) if positions is None else [positions[i] for i in ids[first]]
    small = len(tokens) == 0 or max(tokens) < 2**16
    return EncodedPairs(
        np.array(tokens, dtype=np.uint16 if small else np.int32), rows, reviews, words, len(positions or reviews)
    )


def encode_trial(
    trial: Trial, train: pd.DataFrame, annotations: pd.DataFrame | None, tokenizer: Any, task: Task
) -> EncodedPairs:
    """What a trial may learn from, whatever its fraction and λ.

    Args:
        train: the training reviews, all of them.

    Raises:
        CotdError: the method needs gold labels or annotations, and there are none.
    """
    if annotations is not None:
        gold = train.set_index("id")["label"].dropna().to_dict()
        annotations = choose_annotations(annotations, trial.samples, trial.filters, task, gold)
    pairs = training_pairs(METHODS[trial.method], train, annotations, task, 1.0, trial.shares_encoder)
    positions = {review_id: position for position, review_id in enumerate(train["id"])}
    settings = trial.training
    return encode_pairs(
        pairs,
        tokenizer,
        settings.max_input_tokens,
        settings.max_target_tokens,
        task.answer_mark,
        positions,
        trial.truncation,
    )


def cached_pairs(cache: Path, trial: Trial, tokenizer: Any, task: Task, make: Callable[[], EncodedPairs]) -> EncodedPairs:
    """The encoded pairs of a trial out of the cache; the first trial that needs them makes them, others wait.

    Args:
        cache: the folder of the study's shared data.
    """
    from filelock import FileLock

    identity = {
        "format": FORMAT, "reviews": trial.reviews_digest, "annotations": trial.annotations_digest, "method": trial.method,
        "samples": trial.samples, "filters": trial.filters, "task": task.to_dict(), "tokenizer": tokenizer_digest(tokenizer, trial),
        "max_input_tokens": trial.training.max_input_tokens, "max_target_tokens": trial.training.max_target_tokens,
    }  # fmt: skip
    if trial.shares_encoder:
        identity["shared_encoder"] = True
    if trial.truncation != "head":
        identity["truncation"] = trial.truncation
    folder = cache / f"pairs-{digest(identity)}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{folder.name}.lock"):  # ends with the process that holds it
            if not folder.is_dir():
                make().save(folder)
    return EncodedPairs.open(folder)


def tokenizer_digest(tokenizer: Any, trial: Trial) -> str:
    """Identifies what a tokenizer does: sizes of one family share theirs, and so what was made with it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return digest(backend.to_str()) if backend is not None else trial.base_digest
