"""Sequences that begin alike, as one.

What is learned of an example, or asked about it, begins with the same text: its label, each of its rationales, each option of a
multiple choice. A *tree* is that common beginning and, one after another, its continuations, each of which attends to the
beginning and to itself alone; so the text is computed once. Trees are packed: one after another, without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from cotd.students.backends.base import IGNORED, Pair


class Token(NamedTuple):
    """A token of a tree.

    Attributes:
        position: in its sequence. branch: 0 in the common beginning, else the number of its continuation, from 1.
        label: the token that follows, if it is learned or scored, else IGNORED. target_kind, pair: of the target it belongs to.
    """

    input_id: int
    position: int
    branch: int
    label: int
    target_kind: int
    pair: int


def pack_trees(examples: Sequence[Sequence[Pair]]) -> dict[str, Tensor]:
    """Each example's pairs as a tree, the longest tree first.

    Returns:
        `lengths` (T,), and of each token the fields of `Token` in the plural and `target_weights`, all (N,).
    """
    numbers = count()
    trees = sorted((tree(pairs, numbers) for pairs in examples), key=len, reverse=True)
    columns = torch.tensor(list(chain.from_iterable(trees))).unbind(1)
    fields = ("input_ids", "positions", "branches", "labels", "target_kinds", "pairs")
    part = {"lengths": torch.tensor([len(tokens) for tokens in trees]), **dict(zip(fields, columns, strict=True))}
    return {**part, "target_weights": torch.tensor([pair.weight for pairs in examples for pair in pairs])[part["pairs"]]}


def tree(pairs: Sequence[Pair], numbers: Iterator[int]) -> list[Token]:
    """The tokens of pairs whose sources begin alike. Args: numbers: those that the pairs get."""
    # The last token of a source predicts the first one of its target: it begins the continuation.
    shared = common_beginning([pair.source[:-1] for pair in pairs])
    tokens = [Token(i, position, 0, IGNORED, 0, 0) for position, i in enumerate(shared)]
    for branch, pair in enumerate(pairs, 1):
        ids = [*pair.source[len(shared) :], *pair.target[:-1]]
        labels = [IGNORED] * (len(ids) - len(pair.target)) + [*pair.target]
        number, start = next(numbers), len(shared)
        tokens += [
            Token(i, start + n, branch, label, pair.kind, number) for n, (i, label) in enumerate(zip(ids, labels, strict=True))
        ]
    return tokens


def common_beginning(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows begin with."""
    columns = zip(*rows, strict=False)  # up to the end of the shortest
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
