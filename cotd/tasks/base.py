"""What a task is: what its answers are, how they are read and written, and the words that prompts use."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from cotd.config.model import ConfigModel

# What may surround a model's answer: quotes, brackets, a full stop. Not a minus sign: -1 is not 1.
PUNCTUATION = " \t\r\n.,:;!\"'`*_()[]{}“”‘’«»…。，！"


class Task(ConfigModel, ABC):
    """A text in, an answer out.

    The answers are a fixed set of labels (`classification`), an option of each example's own (`multiple_choice`), or free
    (`numeric`). An answer has one canonical spelling, that of every table, prediction and report.

    Example:
        >>> student.task.labels, student.task.parse("Pos.")
        (('negative', 'positive'), 'positive')
    """

    kind: str
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    noun: str = Field(
        "text", min_length=1, description="what prompts, pages and reports call one text: review, question, support ticket"
    )
    instruction: str = Field(
        "", description="what is asked about a text, as a sentence for a teacher: What does the customer want?"
    )
    label_name: str = Field(
        "Answer", min_length=1, description="the word that stands before an answer in prompts: Sentiment, Relation, Intent"
    )
    label_prefix: str = Field(
        "predict: ", description="asks an encoder-decoder for the answer (Hsieh et al. 2023, section 3.2; the SC4001 code)"
    )
    rationale_prefix: str = Field("explain: ", description="asks an encoder-decoder for the rationale")
    answer_mark: str = Field(
        "Answer:", description="stands between rationale and answer if a student writes both as one target"
    )
    text_mark: str = Field(
        "", description="stands between a rationale and the text if a student reads both; null: the noun, as in Review:"
    )

    # The fixed label set in the order of every probability vector; empty if answers are free or differ by example.
    labels: tuple[str, ...] = ()
    # Whether each example brings its own options (the column `choices`).
    needs_choices: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def default_text_mark(cls, plain: Any) -> Any:
        if (
            isinstance(plain, dict)
            and not plain.get("text_mark")
            and isinstance(noun := plain.get("noun", cls.model_fields["noun"].default), str)
        ):
            return {**plain, "text_mark": f"{noun[:1].upper()}{noun[1:]}:"}
        return plain

    @model_validator(mode="after")
    def labels_of_its_kind(self) -> Task:
        if self.labels and self.kind != "classification":
            raise ValueError(f"labels: a task of kind {self.kind} has none. Leave them out, or set kind: classification")
        return self

    @property
    def folder(self) -> Path:
        """The folder of a built-in task's files."""
        return Path(__file__).parent / self.name

    @property
    def free_answers(self) -> bool:
        """Whether answers are written, and not chosen among options."""
        return self.options() is None

    @property
    def positive_label(self) -> str | None:
        """Of two labels, the one that ROC-AUC and calibration rank by; None for all other tasks."""
        return None

    def options(self, choices: Sequence[str] | None = None) -> tuple[str, ...] | None:
        """The answers that an example can have, in order; None if answers are free.

        Args:
            choices: the example's own.
        """
        return self.labels or None

    @abstractmethod
    def parse(self, value: Any, choices: Sequence[str] | None = None) -> str | None:
        """The answer that a data set's cell stands for, or None. Nothing is guessed."""

    @abstractmethod
    def expected(self, choices: Sequence[str] | None = None) -> str:
        """What an answer must be, in words: "one of negative, positive"."""

    def find(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        """The answer in a model's words, which may have quotes, brackets or a full stop around it; or None."""
        return self.parse(text.strip(PUNCTUATION), choices)

    def verbalize(self, answer: str) -> str:
        """What a student writes for an answer."""
        return answer

    def render(self, text: str, choices: Sequence[str] | None = None) -> str:
        """An example as teachers and students read it: its text, with its options if it has its own."""
        return text

    def joint_target(self, rationale: str, answer: str) -> str:
        """Rationale and answer as one target: "It is warm and funny. Answer: positive"."""
        return f"{rationale} {self.answer_mark} {self.verbalize(answer)}"

    def with_rationale(self, text: str, rationale: str) -> str:
        """A rationale and the text as one input, the rationale first: a token limit cuts off the text's end."""
        return f"{rationale} {self.text_mark} {text}".lstrip()

    def label_pattern(self, answer: str) -> str:
        """A regular expression for an answer, its verbalizer, or an adverb of either, as a whole word in any case."""
        names = "|".join(re.escape(name) for name in sorted({answer, self.verbalize(answer)}))
        return rf"(?i)(?<!\w)(?:{names})(?:ly)?(?!\w)"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for `cotd.json` beside a student; `cotd.tasks.registry.parse_task` reads them."""
        return self.model_dump(mode="json")


def cell_text(value: Any) -> str | None:
    """A cell's text without surrounding space: 3.0 is "3", True is "true"; None for a missing cell or one of several values."""
    if not np.isscalar(value) or value != value:  # None, a list; NaN
        return None
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    if isinstance(value, (bool, np.bool_)):
        value = str(value).lower()
    return str(value).strip()
