"""Students loaded into this process: one, or one that hands what it is not sure of on to a larger one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cotd.evaluation.cascade import ESCALATED, STUDENT, choose_threshold, handed_on
from cotd.students.student import Student
from cotd.students.vocabulary import unknown_characters


@dataclass(frozen=True)
class Cascade:
    """A student, and perhaps a larger one that answers what it is not sure of.

    Attributes:
        threshold: the confidence below which the larger one is asked.
    """

    student: Student
    larger: Student | None = None
    threshold: float = 0.0

    @classmethod
    def load(cls, student: str, larger: str | None = None, below: str = "auto") -> Cascade:
        """Loads students by whatever `Student.load` takes.

        Args:
            below: how sure the first must be, see `choose_threshold`.

        Raises:
            CotdError: a student is not there, or the two cannot be a cascade.
        """
        if larger is None:
            return cls(Student.load(student))
        return cls(Student.load(student), Student.load(larger), choose_threshold(below, student, larger))

    @property
    def can_explain(self) -> bool:
        """Whether any of them has learned to write rationales."""
        return any(self.writer(student) for student in (self.student, self.larger) if student)

    def writer(self, answered_by: Student) -> Student | None:
        """Who writes the reasons of a student's answers: the student itself if it can, else the other one, or nobody."""
        able = [s for s in (answered_by, self.student, self.larger) if s and s.can_explain]
        return able[0] if able else None

    def predict(
        self, texts: Sequence[str], choices: Sequence[Sequence[str]] | None = None, rationale: bool = False
    ) -> list[dict[str, Any]]:
        """Of each text the fields of `Prediction`; `answered_by` if there are two students; `rationale` on request; and `unread`,
        whether it has characters that the first student cannot read.

        Errors are those of `Student.predict`.
        """
        predictions = self.student.predict(texts, choices=choices)
        answered_by = [self.student] * len(texts)
        if self.larger and (unsure := handed_on([p.score for p in predictions], self.threshold)):
            own = choices and [choices[i] for i in unsure]
            for i, prediction in zip(unsure, self.larger.predict([texts[i] for i in unsure], choices=own), strict=True):
                predictions[i], answered_by[i] = prediction, self.larger
        unread = unknown_characters(self.student.tokenizer, self.student.rendered(texts, choices))
        rows: list[dict[str, Any]] = [{**asdict(p), "unread": bool(u)} for p, u in zip(predictions, unread, strict=True)]
        for row, student in zip(rows, answered_by, strict=True):
            row |= {"answered_by": ESCALATED if student is self.larger else STUDENT} if self.larger else {}
        if rationale:
            for writer in filter(None, (self.student, self.larger)):
                written = [i for i, student in enumerate(answered_by) if self.writer(student) is writer]
                own = choices and [choices[i] for i in written]
                for i, text in zip(written, writer.explain([texts[i] for i in written], own), strict=True):
                    rows[i]["rationale"] = text
        return rows
