"""Training pairs as token ids: encoded once for a study, kept as arrays that its trials map into memory.

A folder of the cache is named by a digest of all that decides its content, and holds

    tokens      inputs and targets, one after another
    pairs       a row a training pair: its kind of target, its weight, where its tokens begin and end
    examples    a row an example that has pairs, in the order of the training split
    about.json  the verbalizers, how many training examples there are, and the dtype of tokens
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock

from cotd.config.digest import digest
from cotd.data.truncation import Truncation, truncate
from cotd.students.backends.base import TARGET_KINDS, Backend
from cotd.teachers.filters import FilterContext, choose_annotations
from cotd.training.methods import METHODS
from cotd.training.pairs import AFTER_LABEL, pairs_in_blocks
from cotd.training.trial import Trial
from cotd.utils.files import read_json, replacing, write_json

FORMAT = 3  # raised when the same trial would be encoded otherwise
BLOCK = 4096  # examples that are encoded at once
PAIR = np.dtype(
    [
        ("target_kind", "u1"), ("weight", "<f8"), ("verbalizer", "<i4"), ("cut_input", "?"), ("cut_target", "?"),
        ("input", "<i8"), ("input_length", "<i4"), ("target", "<i8"), ("target_length", "<i4"),
    ]
)  # fmt: skip
EXAMPLE = np.dtype([("id", "<U16"), ("position", "<i8"), ("first", "<i8"), ("last", "<i8")])


@dataclass(frozen=True, eq=False)
class EncodedPairs(Sequence[dict[str, Any]]):
    """A sequence of examples with their encoded pairs; see `__getitem__`.

    Attributes:
        tokens: (T,) token ids.
        pairs: (P,) of dtype PAIR, the pairs of an example beside each other.
        examples: (R,) with fields `id`, `position` in the training split, `first` of its pairs, and one past the `last`.
        verbalizers: what the `verbalizer` of a pair indexes; -1 is none.
        train_rows: how many training examples there are, with and without pairs.
    """

    tokens: np.ndarray
    pairs: np.ndarray
    examples: np.ndarray
    verbalizers: list[str]
    train_rows: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        """One example: its id, how many inputs and targets were cut, and by target kind its (input, target, weight)s."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        example = self.examples[index]
        pairs = self.pairs[example["first"] : example["last"]]
        row: dict[str, Any] = {kind: [] for kind in TARGET_KINDS}
        for pair in pairs:
            kind = TARGET_KINDS[pair["target_kind"]]
            source = self.tokens[pair["input"] : pair["input"] + pair["input_length"]].tolist()
            target = self.tokens[pair["target"] : pair["target"] + pair["target_length"]].tolist()
            row[kind].append((source, target, float(pair["weight"])))
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

    @classmethod
    def open(cls, folder: Path) -> EncodedPairs:
        """Maps a folder that `encode` wrote into memory: its pages are shared by all processes that read them."""
        about = read_json(folder / "about.json")
        dtypes = {"tokens": np.dtype(about["dtype"]), "pairs": PAIR, "examples": EXAMPLE}
        tokens, pairs, rows = (map_file(folder / name, dtype) for name, dtype in dtypes.items())
        return cls(tokens, pairs, rows, about["verbalizers"], about["train_rows"])


def map_file(path: Path, dtype: np.dtype) -> np.ndarray:
    """A file of items of one kind, one after another, mapped into memory."""
    if not path.stat().st_size:  # cannot be mapped
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def count_cut(pairs: np.ndarray) -> dict[str, int]:
    """How many inputs and targets of pairs were cut to the limits."""
    return {"cut_inputs": int(pairs["cut_input"].sum()), "cut_targets": int(pairs["cut_target"].sum())}


class Limits(NamedTuple):
    """How long inputs and targets may be, in tokens, and what stays of an input that is too long."""

    max_input: int
    max_target: int
    truncation: Truncation = "head"


def encode(
    blocks: Iterable[tuple[Mapping[str, int], pd.DataFrame]], backend: Backend, limits: Limits, train_rows: int, folder: Path
) -> None:
    """Writes training pairs as token ids, a block at a time, so that memory does not depend on how many there are.

    Rationales are cut to their limit, their last token staying the end of sequence; answers are not: of a joint target the
    rationale is cut, and the answer stays.

    Args:
        blocks: (position in the training split of each example id, pairs (PAIR_COLUMNS), those of an example beside each other).
        folder: written here; it appears when it is complete.
    """
    dtype = np.dtype("<u2" if len(backend.tokenizer) <= 2**16 else "<i4")
    verbalizers: dict[str, int] = {}
    tokens = pairs = 0
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        with (
            (temporary / "tokens").open("wb") as token_file,
            (temporary / "pairs").open("wb") as pair_file,
            (temporary / "examples").open("wb") as example_file,
        ):
            for positions, block in blocks:
                ids, rows = encode_block(block, backend, limits, verbalizers, tokens)
                token_file.write(np.array(ids, dtype=dtype).tobytes())
                pair_file.write(rows.tobytes())
                example_file.write(example_rows(block, positions, pairs).tobytes())
                tokens, pairs = tokens + len(ids), pairs + len(rows)
        about = {"verbalizers": list(verbalizers), "train_rows": train_rows, "dtype": dtype.str}
        write_json(temporary / "about.json", about)


def encode_block(
    pairs: pd.DataFrame, backend: Backend, limits: Limits, verbalizers: dict[str, int], offset: int
) -> tuple[array[int], np.ndarray]:
    """The tokens of some pairs one after another, and their rows (PAIR).

    Args:
        verbalizers: answer → its code; new ones are added.
        offset: tokens before these.
    """
    tokens = array("i")
    rows = np.zeros(len(pairs), dtype=PAIR)
    kinds = pairs["target_kind"].to_numpy()
    rows["weight"] = pairs["weight"]
    for number, kind in enumerate(TARGET_KINDS):
        here = np.flatnonzero(kinds == kind)
        if not len(here):
            continue
        part = pairs.iloc[here]
        targets, answers = encode_targets(list(part["target"]), kind, backend, limits.max_target)
        texts = list(dict.fromkeys(part["text"]))  # samples share their input
        encoded, cut = backend.sources(texts, kind, limits.max_input, limits.truncation)
        stored = {}
        for text, source, was_cut in zip(texts, encoded, cut, strict=True):
            stored[text] = (was_cut, offset + len(tokens), len(source))
            tokens.extend(source)
        for i, text, (target, target_cut), answer in zip(here, part["text"], targets, answers, strict=True):
            was_cut, start, length = stored[text]
            code = -1 if answer is None else verbalizers.setdefault(answer, len(verbalizers))
            rows[i] = (
                number, rows[i]["weight"], code, was_cut, target_cut, start, length, offset + len(tokens), len(target),
            )  # fmt: skip
            tokens.extend(target)
    return tokens, rows


def encode_targets(
    targets: list[str], kind: str, backend: Backend, limit: int
) -> tuple[list[tuple[list[int], bool]], list[str | None]]:
    """The (tokens, whether they were cut to the limit) of each target, and the answer in it."""
    if kind == "label":
        return [(ids, False) for ids in backend.targets(targets)], list(targets)  # scored whole, and so learned whole
    end = [backend.tokenizer.eos_token_id]
    if kind == "rationale":
        return [cut_target(ids, end, limit) for ids in backend.words(targets)], [None] * len(targets)
    if kind == "after_label":
        # The end of sequence between them ends what is written where an answer alone is asked for.
        labels, _, reasons = zip(*(target.partition(AFTER_LABEL) for target in targets), strict=True)
        written = [cut_target(ids, end, limit) for ids in backend.words(reasons)]
        said = zip(backend.targets(labels), written, strict=True)
        return [([*label, *ids], was_cut) for label, (ids, was_cut) in said], list(labels)
    parts = [target.rsplit(f" {backend.task.answer_mark} ", maxsplit=1) for target in targets]
    rationales = backend.words([rationale for rationale, _ in parts])
    answers = backend.targets([answer for _, answer in parts], begins=False)
    joined = [cut_target(why, [*backend.answer_mark, *ids], limit) for why, ids in zip(rationales, answers, strict=True)]
    return joined, [answer for _, answer in parts]


def cut_target(words: list[int], kept: list[int], limit: int) -> tuple[list[int], bool]:
    """Words and what must stay after them, cut to a limit, and whether they were."""
    whole = [*words, *kept]
    return truncate(whole, limit, min(limit, len(kept) or 1)) if words else truncate(whole, limit), len(whole) > limit


def example_rows(pairs: pd.DataFrame, positions: Mapping[str, int], offset: int) -> np.ndarray:
    """The rows (EXAMPLE) of the examples of some pairs.

    Args:
        offset: pairs before these.
    """
    ids = pairs["example_id"].to_numpy(dtype=str)
    first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    rows = np.zeros(len(first), dtype=EXAMPLE)
    rows["id"], rows["first"], rows["last"] = ids[first], offset + first, offset + np.r_[first[1:], len(ids)]
    rows["position"] = [positions[i] for i in ids[first]]
    return rows


def encode_trial(
    trial: Trial, examples: pd.DataFrame | Path, annotations: pd.DataFrame | None, backend: Backend, folder: Path
) -> None:
    """Writes all that a trial may learn from, whatever its fraction and λ.

    Args:
        examples: the Example table, or its Parquet file, all splits.
        folder: see `encode`.

    Raises:
        CotdError: the method needs gold labels or annotations, and there are none.
    """
    task = backend.task
    if annotations is not None:
        gold = pd.concat(
            block.set_index("id")["label"].dropna() for block in example_blocks(examples, "train", ["id", "label"])
        )
        context = FilterContext(task, gold.to_dict(), partial(read_texts, examples))
        annotations = choose_annotations(annotations, trial.samples, trial.filters, context)
    positions: dict[str, int] = {}
    rows = 0

    def blocks() -> Iterator[pd.DataFrame]:
        nonlocal rows
        for block in example_blocks(examples, "train"):
            positions.clear()
            positions.update(zip(block["id"], range(rows, rows + len(block)), strict=True))
            rows += len(block)
            yield block

    pairs = pairs_in_blocks(METHODS[trial.method], blocks(), annotations, task)
    limits = Limits(trial.training.max_input_tokens, trial.training.max_target_tokens, trial.truncation)
    total = sum(len(block) for block in example_blocks(examples, "train", ["id"]))
    encode(((positions, block) for block in pairs), backend, limits, total, folder)


def read_texts(examples: pd.DataFrame | Path, ids: Sequence[str]) -> tuple[list[str], list[list[str] | None]]:
    """The texts of training examples with these ids, and their own options or None."""
    blocks = [block[block["id"].isin(set(ids))] for block in example_blocks(examples, "train")]
    rows = pd.concat(blocks).set_index("id").loc[list(ids)]
    return list(rows["text"]), list(map(list, rows["choices"])) if "choices" in rows else [None] * len(rows)


def encode_here(encode: Callable[[Path], None]) -> EncodedPairs:
    """Encoded pairs that only this process needs: their files go with it."""
    with tempfile.TemporaryDirectory() as folder:  # what is mapped stays readable
        encode(Path(folder) / "pairs")
        return EncodedPairs.open(Path(folder) / "pairs")


def example_blocks(examples: pd.DataFrame | Path, split: str, columns: list[str] | None = None) -> Iterator[pd.DataFrame]:
    """The rows of a split, some thousand at a time, of the Example table or of its Parquet file."""
    if isinstance(examples, pd.DataFrame):
        rows = examples[examples["split"] == split]
        for start in range(0, len(rows), BLOCK):
            part = rows.iloc[start : start + BLOCK]
            yield part[columns] if columns else part
        return
    import pyarrow.dataset as arrow

    table = arrow.dataset(examples, format="parquet")
    for batch in table.to_batches(columns=columns, filter=arrow.field("split") == split, batch_size=BLOCK):
        if batch.num_rows:
            yield batch.to_pandas()


def cached_pairs(cache: Path, trial: Trial, backend: Backend, encode: Callable[[Path], None]) -> EncodedPairs:
    """The encoded pairs of a trial from the cache; the first trial that needs them encodes them, others wait.

    Args:
        cache: the folder of the study's shared data.
        encode: writes them to a folder.
    """
    identity = {
        "format": FORMAT, "examples": trial.examples_digest, "annotations": trial.annotations_digest, "method": trial.method,
        "samples": trial.samples, "filters": trial.filters, "task": backend.task.to_dict(),
        "tokenizer": tokenizer_digest(backend.tokenizer, trial), "prompt_form": backend.prompt_form,
        "max_input_tokens": trial.training.max_input_tokens, "max_target_tokens": trial.training.max_target_tokens,
        "shared_encoder": trial.shares_encoder, "truncation": trial.truncation,
    }  # fmt: skip
    folder = cache / f"pairs-{digest(identity)}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".lock-{folder.name}"):  # released when its process ends
            if not folder.is_dir():
                encode(folder)
    return EncodedPairs.open(folder)


def tokenizer_digest(tokenizer: Any, trial: Trial) -> str:
    """Identifies a tokenizer by what it does: the sizes of a family share one, and what was encoded with it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return digest(backend.to_str()) if backend is not None else trial.base_digest
