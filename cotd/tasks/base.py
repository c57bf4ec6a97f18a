"""A task: its label set, the student's words and prefixes, and where its prompts lie.

Nothing outside this file spells a label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Task:
    """What is predicted, and how it is written for a text-to-text student.

    Attributes:
        labels: the label set, in the order used for every probability vector.
        verbalizers: label → what the student's decoder writes for it. They must differ at their first token.
        spellings: other ways data sets write a label (folded to lower case) → label.
        label_prefix, rationale_prefix: the input prefix that asks for the label or for the rationale
            (Hsieh et al. 2023, section 3.2; "predict: " and "explain: " in the SC4001 code).
        answer_mark: what stands between rationale and label where a student writes both as one target.
        review_mark: what stands between a rationale and the review where a student reads both.
        positive: the label whose probability is "the" score in calibration and AUC.
    """

    name: str
    labels: tuple[str, ...]
    verbalizers: Mapping[str, str]
    positive: str
    spellings: Mapping[str, str] = field(default_factory=dict)
    label_prefix: str = "predict: "
    rationale_prefix: str = "explain: "
    answer_mark: str = "Answer:"
    review_mark: str = "Review:"

    @property
    def folder(self) -> Path:
        """Where a built-in task's files lie: `prompts.yaml`."""
        return Path(__file__).parent / self.name

    def joint_target(self, rationale: str, label: str) -> str:
        """Rationale and label as one target: "It is warm and funny. Answer: positive"."""
        return f"{rationale} {self.answer_mark} {self.verbalizers[label]}"

    def with_rationale(self, text: str, rationale: str) -> str:
        """A rationale and the review as one input. The rationale goes first: what a limit cuts off is the review's end
        (`Trial.truncation`)."""
        return f"{rationale} {self.review_mark} {text}".lstrip()

    def parse_label(self, value: Any) -> str | None:
        """The label that `value` (a data set's cell or a teacher's word) stands for, or None if it is none.

        Folds case, surrounding space and a final full stop; 0/1, neg/pos and the task's other spellings count.
        """
        if not np.isscalar(value) or value != value:  # None, a list; NaN
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = str(value).strip().strip(".").lower()
        if text in self.labels:
            return text
        return self.spellings.get(text)

    def label_pattern(self, label: str) -> str:
        """A pattern of a label's name or word, or its adverb, as a word of its own and in whatever case."""
        words = "|".join(re.escape(w) for w in sorted({label, self.verbalizers[label]}))
        return rf"(?i)\b(?:{words})(?:ly)?\b"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for `cotd.json` beside a student."""
        plain = asdict(self)
        plain["labels"] = list(self.labels)
        plain["verbalizers"] = dict(self.verbalizers)
        plain["spellings"] = dict(self.spellings)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Task:
        return cls(**{**plain, "labels": tuple(plain["labels"])})
