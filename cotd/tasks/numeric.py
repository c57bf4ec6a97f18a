"""Numeric tasks: the answer is a number that is written, not chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from cotd.tasks.base import Task, cell_text

_NUMBER = r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[+-]?\.\d+"
_WHOLE = re.compile(rf"^[$€£]?\s*({_NUMBER})\s*[%€£]?\.?$")
# Not the digits of a word or of a longer number, of a fraction or one with a decimal comma, and no range's dash as a sign.
_ANYWHERE = re.compile(rf"(?<![\w.,/])(?:{_NUMBER})(?!\w|[.,/]\d|\s\d+/\d)")
# How numbers are written in print: a minus sign of its own, thousands apart by a narrow space, TeX's comma.
_IN_PRINT = [
    (re.compile("[−﹣－]"), "-"),
    (re.compile(r"(?<=\d)[\u00a0\u2009\u202f'’](?=\d{3}(?!\d))"), ","),
    (re.compile(r"\{,\}"), ","),
]


class Numeric(Task):
    """An answer is a number, in plain decimal notation: "1,200.50" is 1200.5.

    Answers are free: they are generated, have no probabilities, and cannot be scored or calibrated.
    """

    kind: Literal["numeric"] = "numeric"
    noun: str = "problem"

    def options(self, choices: Sequence[str] | None = None) -> tuple[str, ...] | None:
        """None: answers are free."""
        return None

    def parse(self, value: Any, choices: Sequence[str] | None = None) -> str | None:
        """The number that a cell is, with or without a currency or per cent sign."""
        text = cell_text(value)
        match = _WHOLE.match(plain_digits(text)) if text else None
        return canonical(match[1]) if match else None

    def find(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        """The last number in a model's words: "3 + 4 = 7 apples" is 7. What may be several, as "7/2" or "1,5", is none."""
        numbers = _ANYWHERE.findall(plain_digits(text))
        return canonical(numbers[-1]) if numbers else None

    def label_pattern(self, answer: str) -> str:
        """A regular expression for the number as such, with or without separators and trailing zeros: 7 is not in 17 or 7.5."""
        sign, whole, fraction = re.match(r"(-?)(\d*)\.?(\d*)", answer).groups()  # type: ignore[union-attr]
        grouped = re.escape(f"{int(whole or 0):,}").replace(",", ",?")
        tail = rf"\.{fraction}0*" if fraction else r"(?:\.0+)?"
        return rf"(?<![\w.])(?<!\d,){sign}{grouped}{tail}(?![\w]|[.,]\d)"

    def expected(self, choices: Sequence[str] | None = None) -> str:
        """What an answer must be."""
        return "a number"


def plain_digits(text: str) -> str:
    """A text with its numbers as they are typed."""
    for pattern, sign in _IN_PRINT:
        text = pattern.sub(sign, text)
    return text


def canonical(number: str) -> str | None:
    """A number without separators, trailing zeros or plus sign."""
    try:
        value = Decimal(number.replace(",", "").replace("+", ""))
    except InvalidOperation:
        return None
    text = format(value.normalize(), "f")
    return "0" if text == "-0" else text
