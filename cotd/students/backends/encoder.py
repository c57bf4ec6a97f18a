"""An encoder with a classification head as a student: a fixed set of labels, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cotd.data.truncation import Truncation, tail_length, truncate
from cotd.errors import CotdError
from cotd.students.backends.base import Backend, Pair, padded, weighted_loss
from cotd.students.backends.kinds import encoder_problem
from cotd.tasks.base import Task
from cotd.utils.iteration import batched

GROUP_ROWS = 8  # rows that are padded to one width


class Encoder(Backend):
    """A target is a single number, that of its label.

    Raises:
        CotdError: the task has no fixed set of labels.
    """

    kind = "encoder"
    writes = False

    def __init__(self, model: Any, tokenizer: Any, task: Task, card: dict[str, Any]):
        super().__init__(model, tokenizer, task, card)
        if problem := encoder_problem(task):
            raise CotdError(problem)

    def sources(
        self, texts: Sequence[str], kind: str, limit: int, truncation: Truncation = "head"
    ) -> tuple[list[list[int]], list[bool]]:
        encoded = self.tokenizer(list(texts), verbose=False)["input_ids"] if len(texts) else []
        tail = tail_length(truncation, limit)
        return [truncate(ids, limit, tail) for ids in encoded], [len(ids) > limit for ids in encoded]

    def words(self, texts: Sequence[str], begins: bool = True) -> list[list[int]]:
        return [[self._numbers[text]] for text in texts]

    def targets(self, texts: Sequence[str], begins: bool = True) -> list[list[int]]:
        """The labels' numbers. Args: texts: verbalized labels."""
        return self.words(texts)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {self.task.verbalize(label): number for number, label in enumerate(self.task.labels)}

    def pack(self, examples: Sequence[Sequence[Pair]]) -> dict[str, Any]:
        """Distinct inputs one after another, the longest first.

        Returns:
            `input_ids` (N,) and `lengths` (I,) of the inputs; `sources` (P,) the input of each pair; `labels`, `target_kinds` and
            `target_weights` (P,).
        """
        pairs = [pair for example in examples for pair in example]
        # The answers that a teacher thinks possible share their text.
        inputs = sorted(dict.fromkeys(tuple(pair.source) for pair in pairs), key=len, reverse=True)
        positions = {source: position for position, source in enumerate(inputs)}
        return {
            "input_ids": torch.tensor([i for source in inputs for i in source]),
            "lengths": torch.tensor([len(source) for source in inputs]),
            "sources": torch.tensor([positions[tuple(pair.source)] for pair in pairs]),
            "labels": torch.tensor([pair.target[0] for pair in pairs]),
            "target_kinds": torch.tensor([pair.kind for pair in pairs]),
            "target_weights": torch.tensor([pair.weight for pair in pairs]),
        }

    def loss(self, part: dict[str, Any], weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
        logits = []
        for rows in batched(part["input_ids"].split(part["lengths"].tolist()), GROUP_ROWS):
            ids, mask = padded(rows, self.tokenizer.pad_token_id)
            logits.append(self.model(input_ids=ids, attention_mask=mask).logits.float())
        return weighted_loss(torch.cat(logits)[part["sources"]], part["labels"], weights, label_smoothing)

    def label_scores(self, sources: Sequence[list[int]], written: Sequence[list[int]] | None = None) -> Tensor:
        ids, mask = padded(sources, self.tokenizer.pad_token_id, self.model.device)
        return self.model(input_ids=ids, attention_mask=mask).logits.float().cpu()
