"""A task: its label set, verbalizers and prefixes, and where its prompts are. No other module spells a label."""

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
        labels: the label set, in the order of every probability vector.
        verbalizers: label → what the student's decoder writes for it. They must differ at their first token.
        positive: the label whose probability is the score in calibration and AUC.
        spellings: other ways in which data sets write a label (in lower case) → label.
        label_prefix, rationale_prefix: the input prefix that asks for the label or for the rationale
            (Hsieh et al. 2023, section 3.2; "predict: " and "explain: " in the SC4001 code).
        answer_mark: stands between rationale and label if a student writes both as one target.
        review_mark: stands between a rationale and the review if a student reads both.

    Example:
        >>> student.task.labels, student.task.parse_label("Pos.")
        (('negative', 'positive'), 'positive')
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
        """The folder of a built-in task's files."""
        return Path(__file__).parent / self.name

    def joint_target(self, rationale: str, label: str) -> str:
        """Rationale and label as one target: "It is warm and funny. Answer: positive"."""
        return f"{rationale} {self.answer_mark} {self.verbalizers[label]}"

    def with_rationale(self, text: str, rationale: str) -> str:
        """A rationale and the review as one input, the rationale first: a token limit cuts off the review's end."""
        return f"{rationale} {self.review_mark} {text}".lstrip()

    def parse_label(self, value: Any) -> str | None:
        """The label that a data set's cell or a teacher's word stands for, or None.

        Case, surrounding space and a final full stop do not matter.
        """
        if not np.isscalar(value) or value != value:  # None, a list; NaN
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = str(value).strip().strip(".").lower()
        return text if text in self.labels else self.spellings.get(text)

    def label_pattern(self, label: str) -> str:
        """A regular expression for a label's name, its verbalizer, or an adverb of either, as a whole word in any case."""
        names = "|".join(re.escape(name) for name in sorted({label, self.verbalizers[label]}))
        return rf"(?i)\b(?:{names})(?:ly)?\b"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for `cotd.json` beside a student."""
        return asdict(self) | {"labels": list(self.labels)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Task:
        """The task that `to_dict` gave, or a `task.yaml` holds."""
        return cls(**{**plain, "labels": tuple(plain["labels"])})
