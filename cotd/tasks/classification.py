"""Classification: one of a fixed set of labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, model_validator

from cotd.tasks.base import PUNCTUATION, Task, cell_text

_LABEL_PREFIX = re.compile(r"^__label__", re.IGNORECASE)  # fastText's
_WHOLE_FLOAT = re.compile(r"^([+-]?\d+)\.0+$")
# Options are listed in prompts up to so many; the rest are counted in messages.
SHOWN = 12


class Classification(Task):
    """A text has one of the task's labels.

    `labels` is a list, or a mapping of each label to other spellings of it in the data: `{refund: [0, R], bug: [1]}`.
    """

    kind: Literal["classification"] = "classification"
    label_name: str = "Label"
    labels: tuple[str, ...] = Field(min_length=2)
    spellings: Mapping[str, str] = Field(
        default_factory=dict, description="other ways in which data sets write a label, in any case → label"
    )
    verbalizers: Mapping[str, str] = Field(
        default_factory=dict, description="label → what a student writes for it; by default the label itself"
    )
    positive: str | None = Field(
        None, description="of two labels, the one that ROC-AUC and calibration rank by; null: the second one"
    )

    @model_validator(mode="before")
    @classmethod
    def spellings_beside_labels(cls, plain: Any) -> Any:
        """`labels: {refund: [0, R]}` is short for labels and spellings."""
        if not isinstance(plain, dict):
            return plain
        plain = dict(plain)
        labels = plain.get("labels")
        if isinstance(labels, Mapping):
            spellings = dict(plain.get("spellings") or {})
            for label, others in labels.items():
                for other in others if isinstance(others, (list, tuple)) else [] if others is None else [others]:
                    spellings[str(cell_text(other))] = cell_text(label)
            plain |= {"labels": list(labels), "spellings": spellings}
        if isinstance(plain.get("labels"), (list, tuple)):
            plain["labels"] = [cell_text(label) for label in plain["labels"]]
        for key in ("spellings", "verbalizers"):
            if isinstance(plain.get(key), Mapping):
                plain[key] = {cell_text(k): cell_text(v) for k, v in plain[key].items()}
        if isinstance(plain.get("spellings"), dict):
            plain["spellings"] = {str(k).casefold(): v for k, v in plain["spellings"].items()}
        return plain

    @model_validator(mode="after")
    def consistent(self) -> Classification:
        problems = []
        folded = [label.casefold() for label in self.labels]
        if repeated := sorted({label for label in self.labels if folded.count(label.casefold()) > 1}):
            problems.append(f"labels: {', '.join(repeated)} occur twice (case does not distinguish labels)")
        if any(not label for label in self.labels):
            problems.append("labels: one is empty")
        for key, names in (
            ("spellings", self.spellings.values()),
            ("verbalizers", self.verbalizers),
            ("positive", [self.positive] if self.positive else []),
        ):
            if unknown := [name for name in dict.fromkeys(names) if name not in self.labels]:
                problems.append(f"{key}: {', '.join(map(str, unknown))} is not among labels ({', '.join(self.labels)})")
        problems += [
            f"spellings: '{spelling}' stands for '{label}' and is a label itself"
            for spelling, label in self.spellings.items()
            if spelling in folded and label.casefold() != spelling
        ]
        written = [self.verbalize(label).casefold() for label in self.labels]
        if len(set(written)) < len(written) and len(set(folded)) == len(folded):
            problems.append("verbalizers: two labels have the same one")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def positive_label(self) -> str | None:
        """Of two labels, the one that ROC-AUC and calibration rank by; None if there are more."""
        return (self.positive or self.labels[1]) if len(self.labels) == 2 else None

    def parse(self, value: Any, choices: Sequence[str] | None = None) -> str | None:
        """The label of a cell: its name or another spelling, in any case, with fastText's `__label__` or a full stop."""
        text = cell_text(value)
        if text is None:
            return None
        text = _LABEL_PREFIX.sub("", text)
        for form in (text, text.strip("."), _WHOLE_FLOAT.sub(r"\1", text)):
            if (label := self._by_spelling.get(form.strip().casefold())) is not None:
                return label
        return None

    def find(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        """As `parse`; a model may also have written a label's verbalizer, or other signs between its words: `card_lost`, "card lost"."""
        word = text.strip(PUNCTUATION)
        return self.parse(word) or self._by_verbalizer.get(word.casefold()) or self._by_words.get(words_of(word))

    @cached_property
    def _by_spelling(self) -> dict[str, str]:
        return dict(self.spellings) | {label.casefold(): label for label in self.labels}

    @cached_property
    def _by_verbalizer(self) -> dict[str, str]:
        return {self.verbalize(label).casefold(): label for label in self.labels}

    @cached_property
    def _by_words(self) -> dict[str, str]:
        """The words of a label → the label, of those whose words are no other's."""
        words = [words_of(label) for label in self.labels]
        return {w: label for w, label in zip(words, self.labels, strict=True) if w and words.count(w) == 1}

    def expected(self, choices: Sequence[str] | None = None) -> str:
        """The labels, in words."""
        more = len(self.labels) - SHOWN
        return f"one of {', '.join(self.labels[:SHOWN])}" + (f" and {more} more" if more > 0 else "")

    def verbalize(self, answer: str) -> str:
        """The label's verbalizer."""
        return self.verbalizers.get(answer, answer)


def words_of(label: str) -> str:
    """A label's words, in small letters, without what joins them."""
    return re.sub(r"[\s_-]+", " ", label).strip().casefold()
