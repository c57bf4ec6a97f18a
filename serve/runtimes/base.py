"""What a runtime is, and what the runtimes that compute padded batches share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from cotd.errors import CotdError
from cotd.students.student import Student

# Texts of similar length that are computed together on a CPU: computing padding costs more than a larger product saves.
CPU_BATCH = 8


class Unfit(CotdError):
    """A student that was loaded and must not be served: loading it again would change nothing."""


class Runtime(Protocol):
    """Computes label logits."""

    def label_logits(self, texts: Sequence[str]) -> tuple[Any, list[bool]]:
        """Logits of the label words, as `Student.label_logits` gives them: (len(texts), labels), and truncated flags."""
        ...


class BatchedRuntime(ABC):
    """A runtime of one decoder step; a subclass computes one padded batch."""

    def __init__(self, student: Student):
        self.student = student
        self.batch_size = CPU_BATCH if student.model.device.type == "cpu" else None  # a GPU gets all texts at once

    @abstractmethod
    def score(self, ids: Any, mask: Any) -> Any:
        """Tensors of token ids and their 0/1 mask, both (B, T) → a tensor of label logits, (B, labels)."""

    def label_logits(self, texts: Sequence[str]) -> tuple[Any, list[bool]]:
        """Logits of the label words, on the CPU: (len(texts), labels), and whether each text was truncated."""
        import torch

        logits = torch.empty(len(texts), len(self.student.task.labels))
        truncated = [False] * len(texts)
        size = self.batch_size or max(1, len(texts))
        for indices, batch, cut in self.student.batches(texts, self.student.task.label_prefix, size):
            with torch.inference_mode():
                logits[indices] = self.score(batch["input_ids"], batch["attention_mask"]).float().cpu()
            for i, was_cut in zip(indices, cut, strict=True):
                truncated[i] = was_cut
        return logits, truncated
