"""Multiple choice: each example brings its own options, of which one is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any, ClassVar, Literal

from cotd.tasks.base import PUNCTUATION, Task, cell_text

# "b", "(b)", "B.", "Option B" or "(b) enforce", at the beginning of a model's words.
_LETTER = re.compile(r"^\W*(?:(?:option|choice)\s+)?\W*([a-z])(?:[).:]\s*|\s*$)(.*)$", re.IGNORECASE | re.DOTALL)


def option_marks(count: int) -> list[str]:
    """What so many options are called, in their order: "(a)", "(b)" and so on."""
    return [f"({letter})" for letter in ascii_lowercase[:count]]


class MultipleChoice(Task):
    """An answer is the text of one of the example's options; gold may name it by its letter, A for the first.

    An example is read with its options: "Where is a shelf? (a) wall (b) sea" (as Hsieh et al. 2023 write CommonsenseQA).
    """

    kind: Literal["multiple_choice"] = "multiple_choice"
    noun: str = "question"
    needs_choices: ClassVar[bool] = True

    def options(self, choices: Sequence[str] | None = None) -> tuple[str, ...] | None:
        """The example's own options."""
        return tuple(choices) if choices is not None else ()

    def parse(self, value: Any, choices: Sequence[str] | None = None) -> str | None:
        """The option that a cell names by its text, in any case, or by its letter."""
        text = cell_text(value)
        if text is None or choices is None:
            return None
        by_text = {option.strip().casefold(): option for option in choices}
        if (option := by_text.get(text.casefold())) is not None:
            return option
        position = ascii_lowercase.find(text.lower()) if len(text) == 1 else -1
        return choices[position] if 0 <= position < len(choices) else None

    def find(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        """As `parse`, also for "(b)", "B." or "(b) enforce"."""
        if (option := self.parse(text.strip(PUNCTUATION), choices)) is not None:
            return option
        if (letter := _LETTER.match(text.strip())) is None:
            return None
        named, rest = self.parse(letter[1], choices), letter[2].strip(PUNCTUATION)
        return named if not rest or self.parse(rest, choices) in (named, None) else None

    def expected(self, choices: Sequence[str] | None = None) -> str:
        """The example's options, in words."""
        return f"one of its options ({'; '.join(choices)})" if choices else "one of its options"

    def render(self, text: str, choices: Sequence[str] | None = None) -> str:
        """The text and its options, with letters."""
        options = () if choices is None else choices
        listed = " ".join(f"{mark} {option}" for mark, option in zip(option_marks(len(options)), options, strict=False))
        return f"{text} {listed}".strip()
