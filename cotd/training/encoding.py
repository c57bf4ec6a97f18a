"""Training pairs as token ids: encoded once for a study, kept as arrays that its trials map into memory.

A folder of the cache is named by a digest of all that decides its content, and holds

    tokens.npy   every distinct input and target, one after another
    pairs.npy    a row a training pair: its kind of target, its weight, where its tokens begin and end
    examples.npy  a row an example that has pairs, in the order of the training split
    about.json   the verbalizers, and how many training examples there are
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from cotd.config.digest import digest
from cotd.data.truncation import Truncation, tail_length, truncate
from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.teachers.filters import choose_annotations
from cotd.training.methods import METHODS
from cotd.training.pairs import TARGET_KINDS, training_pairs
from cotd.training.trial import Trial
from cotd.utils.files import read_json, replacing, write_json
from cotd.utils.iteration import find_sublist

FORMAT = 1  # raised when the same trial would be encoded otherwise
ARRAYS = ("tokens", "pairs", "examples")
PAIR = np.dtype(
    [
        ("target_kind", "u1"), ("weight", "<f8"), ("verbalizer", "<i2"), ("cut_input", "?"), ("cut_target", "?"),
        ("input", "<i8"), ("input_length", "<i4"), ("target", "<i8"), ("target_length", "<i4"),
    ]
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class EncodedPairs(Sequence[dict[str, Any]]):
    """A sequence of examples with their encoded pairs; see `__getitem__`.

    Attributes:
        tokens: (T,) token ids.
        pairs: (P,) of dtype PAIR, the pairs of an example beside each other.
        examples: (R,) with fields `id`, `position` in the training split, `first` of its pairs, and one past the `last`.
        verbalizers: what the `verbalizer` of a pair indexes; -1 is none.
        train_rows: how many training examples there are, with and without pairs.
        rationale_weight: multiplies the weights of rationale pairs.
    """

    tokens: np.ndarray
    pairs: np.ndarray
    examples: np.ndarray
    verbalizers: list[str]
    train_rows: int
    rationale_weight: float = 1.0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        """One review: its id, how many inputs and targets were cut, and by target kind its (input, target, weight)s."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        example = self.examples[index]
        pairs = self.pairs[example["first"] : example["last"]]
        row: dict[str, Any] = {kind: [] for kind in TARGET_KINDS}
        for pair in pairs:
            kind = TARGET_KINDS[pair["target_kind"]]
            source = self.tokens[pair["input"] : pair["input"] + pair["input_length"]].tolist()
            target = self.tokens[pair["target"] : pair["target"] + pair["target_length"]].tolist()
            weight = float(pair["weight"]) * (self.rationale_weight if kind == "rationale" else 1.0)
            row[kind].append((source, target, weight))
        return {"example_id": str(example["id"]), **count_cut(pairs), **row}

    def head(self, train_examples: int) -> EncodedPairs:
        """The part that belongs to the first so many training examples."""
        rows = int(np.searchsorted(self.examples["position"], train_examples))
        last = int(self.examples["last"][rows - 1]) if rows else 0
        return replace(self, examples=self.examples[:rows], pairs=self.pairs[:last])

    def counts(self) -> dict[str, int]:
        """How many pairs there are, and how many of their inputs and targets were cut to the limits."""
        return {"train_pairs": len(self.pairs), **count_cut(self.pairs)}

    def used_verbalizers(self) -> list[str]:
        """The distinct verbalizers among the targets."""
        return [self.verbalizers[i] for i in np.unique(self.pairs["verbalizer"]) if i >= 0]

    def save(self, folder: Path) -> None:
        """Writes the arrays to a folder that appears when it is complete."""
        with replacing(folder) as temporary:
            temporary.mkdir(parents=True)
            for name in ARRAYS:
                np.save(temporary / f"{name}.npy", getattr(self, name))
            write_json(temporary / "about.json", {"verbalizers": self.verbalizers, "train_rows": self.train_rows})

    @classmethod
    def open(cls, folder: Path) -> EncodedPairs:
        """Maps a saved folder into memory: its pages are shared by all processes that read them."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        return cls(**arrays, **read_json(folder / "about.json"))


def count_cut(pairs: np.ndarray) -> dict[str, int]:
    """How many inputs and targets of pairs were cut to the limits."""
    return {"cut_inputs": int(pairs["cut_input"].sum()), "cut_targets": int(pairs["cut_target"].sum())}


def encode_pairs(
    pairs: pd.DataFrame,
    tokenizer: Any,
    max_input: int,
    max_target: int,
    answer_mark: str = "Answer:",
    positions: Mapping[str, int] | None = None,
    truncation: Truncation = "head",
) -> EncodedPairs:
    """Training pairs (PAIR_COLUMNS, those of an example beside each other) as token ids, in the same order.

    Inputs and targets are cut to the limits, their last token staying the end of sequence. Of a joint target the rationale is
    cut, and the label stays.

    Args:
        positions: example id → its position in the training split; by default examples are numbered as they come.
        truncation: what stays of an input that is too long; of a target it is the beginning.
    """
    inputs = tokenizer(list(pairs["input"]))["input_ids"]
    targets = tokenizer(text_target=list(pairs["target"]))["input_ids"]
    mark = tokenizer(text_target=answer_mark, add_special_tokens=False)["input_ids"]
    tokens = array("i")
    stored: dict[tuple[str, str], tuple[int, int]] = {}  # (kind, text) → (start, length): samples share their input

    def store(kind: str, text: str, ids: list[int]) -> tuple[int, int]:
        if (kind, text) not in stored:
            stored[kind, text] = (len(tokens), len(ids))
            tokens.extend(ids)
        return stored[kind, text]

    verbalizers: dict[str, int] = {}
    tail = tail_length(truncation, max_input)
    rows = np.zeros(len(pairs), dtype=PAIR)
    for i, (pair, source, target) in enumerate(zip(pairs.itertuples(), inputs, targets, strict=True)):
        kept = 1  # last tokens of a target that stay
        if pair.target_kind == "joint":
            after_mark = find_sublist(target[::-1], mark[::-1])
            if after_mark is None:
                raise CotdError(
                    f"the base model's tokenizer joins '{answer_mark}' with the text around it. Use another base model."
                )
            kept = after_mark + len(mark)
        verbalizer = -1
        if pair.target_kind != "rationale":
            verbalizer = verbalizers.setdefault(pair.target.rsplit(f"{answer_mark} ", maxsplit=1)[-1], len(verbalizers))
        rows[i] = (
            TARGET_KINDS.index(pair.target_kind), pair.weight, verbalizer, len(source) > max_input, len(target) > max_target,
            *store("input", pair.input, truncate(source, max_input, tail)),
            *store(pair.target_kind, pair.target, truncate(target, max_target, kept)),
        )  # fmt: skip
    ids = pairs["example_id"].to_numpy(dtype=str)
    first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]) if len(ids) else np.zeros(0, dtype=np.int64)
    examples = np.zeros(len(first), dtype=[("id", ids.dtype), ("position", "<i8"), ("first", "<i8"), ("last", "<i8")])
    examples["id"], examples["first"], examples["last"] = ids[first], first, np.r_[first[1:], len(ids)]
    examples["position"] = range(len(first)) if positions is None else [positions[i] for i in ids[first]]
    dtype = np.uint16 if max(tokens, default=0) < 2**16 else np.int32
    return EncodedPairs(np.array(tokens, dtype=dtype), rows, examples, list(verbalizers), len(positions or examples))


def encode_trial(
    trial: Trial, train: pd.DataFrame, annotations: pd.DataFrame | None, tokenizer: Any, task: Task
) -> EncodedPairs:
    """All that a trial may learn from, whatever its fraction and λ.

    Args:
        train: the training examples, all of them.

    Raises:
        CotdError: the method needs gold labels or annotations, and there are none.
    """
    if annotations is not None:
        gold = train.set_index("id")["label"].dropna().to_dict()
        annotations = choose_annotations(annotations, trial.samples, trial.filters, task, gold)
    pairs = training_pairs(METHODS[trial.method], train, annotations, task, 1.0, trial.shares_encoder)
    positions = {example_id: position for position, example_id in enumerate(train["id"])}
    limits = trial.training.max_input_tokens, trial.training.max_target_tokens
    return encode_pairs(pairs, tokenizer, *limits, task.answer_mark, positions, trial.truncation)


def cached_pairs(cache: Path, trial: Trial, tokenizer: Any, task: Task, encode: Callable[[], EncodedPairs]) -> EncodedPairs:
    """The encoded pairs of a trial from the cache; the first trial that needs them encodes them, others wait.

    Args:
        cache: the folder of the study's shared data.
    """
    identity = {
        "format": FORMAT, "examples": trial.examples_digest, "annotations": trial.annotations_digest, "method": trial.method,
        "samples": trial.samples, "filters": trial.filters, "task": task.to_dict(), "tokenizer": tokenizer_digest(tokenizer, trial),
        "max_input_tokens": trial.training.max_input_tokens, "max_target_tokens": trial.training.max_target_tokens,
        "shared_encoder": trial.shares_encoder, "truncation": trial.truncation,
    }  # fmt: skip
    folder = cache / f"pairs-{digest(identity)}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".lock-{folder.name}"):  # released when its process ends
            if not folder.is_dir():
                encode().save(folder)
    return EncodedPairs.open(folder)


def tokenizer_digest(tokenizer: Any, trial: Trial) -> str:
    """Identifies a tokenizer by what it does: the sizes of a family share one, and what was encoded with it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return digest(backend.to_str()) if backend is not None else trial.base_digest
