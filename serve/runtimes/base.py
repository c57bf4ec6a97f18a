"""What a runtime is, and what the runtimes that compute padded batches share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from cotd.errors import CotdError
from cotd.students.backends.base import padded
from cotd.students.student import Prediction, Student

# Texts of similar length that are computed together on a CPU: computing padding costs more than a larger product saves.
CPU_BATCH = 8


class Unfit(CotdError):
    """A student that was loaded and must not be served: loading it again would change nothing."""


class Runtime(Protocol):
    """Computes what a student predicts.

    Attributes:
        student: who writes rationales; its weights may be converted to those that the runtime computes with.
    """

    student: Student

    def predict(self, texts: Sequence[str], choices: Sequence[Sequence[str]] | None = None) -> list[Prediction]:
        """The answer to each text, as `Student.predict` gives it."""
        ...

    def label_logits(self, texts: Sequence[str], choices: Sequence[Sequence[str]] | None = None) -> tuple[Any, list[bool]]:
        """Scores of each text's options and truncated flags, as `Student.label_logits` gives them."""
        ...


class StudentRuntime:
    """A student as it is, of any kind."""

    def __init__(self, student: Student):
        self.student = student

    def predict(self, texts: Sequence[str], choices: Sequence[Sequence[str]] | None = None) -> list[Prediction]:
        """The answer to each text."""
        return self.student.predict(texts, choices=choices)

    def label_logits(self, texts: Sequence[str], choices: Sequence[Sequence[str]] | None = None) -> tuple[Any, list[bool]]:
        """Scores of each text's options, and whether each text was truncated."""
        return self.student.label_logits(texts, choices=choices)


class BatchedRuntime(ABC):
    """A runtime of one decoder step, for a fixed label set; a subclass computes one padded batch."""

    def __init__(self, student: Student):
        self.student = student
        self.batch_size = CPU_BATCH if student.model.device.type == "cpu" else None  # a GPU gets all texts at once

    @abstractmethod
    def score(self, ids: Any, mask: Any) -> Any:
        """Tensors of token ids and their 0/1 mask, both (B, T) → a tensor of label logits, (B, labels)."""

    def predict(self, texts: Sequence[str], choices: Sequence[Sequence[str]] | None = None) -> list[Prediction]:
        """The label of each text."""
        return self.student.predictions(*self.label_logits(texts, choices))

    def label_logits(self, texts: Sequence[str], choices: Sequence[Sequence[str]] | None = None) -> tuple[Any, list[bool]]:
        """Logits of the label words, on the CPU: (len(texts), labels), and whether each text was truncated."""
        import torch

        student = self.student
        logits = torch.empty(len(texts), len(student.task.labels))
        truncated = [False] * len(texts)
        size = self.batch_size or max(1, len(texts))
        for indices, sources, cut in student.batches(student.inputs(texts, None, choices), "label", size):
            ids, mask = padded(sources, student.tokenizer.pad_token_id, student.model.device)
            with torch.inference_mode():
                logits[indices] = self.score(ids, mask).float().cpu()
            for i, was_cut in zip(indices, cut, strict=True):
                truncated[i] = was_cut
        return logits, truncated


def label_step_obstacle(student: Student) -> str | None:
    """Why one decoder step of a T5 does not give a student's answers, as the end of a sentence about what computes it; or None."""
    task = student.task
    if (family := student.model.config.model_type) != "t5":
        return f"computes T5, and this student is a {family}"
    if not task.labels:
        return f"computes a fixed set of labels, and the task '{task.name}' is {task.kind}"
    if student.rationale_before_label:
        return f"computes labels alone, and this student, trained by '{student.card.get('method')}', writes a rationale before its label"
    if student.first_tokens is None:
        return "tells labels apart by their first token, and this tokenizer begins two of them with the same one"
    return None
