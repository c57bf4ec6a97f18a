"""Parts of texts, such as words, sentences and lines of an error's message, and how numbers are written for people."""

from __future__ import annotations

import re

# Scripts that put no spaces between words: Thai, Lao, Burmese and Khmer, Japanese, Chinese, with their punctuation.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
WORD = re.compile(rf"[^\W_{_UNSPACED}]+|[^\W_]")
# What counts as one word of a length: a run without space or, of scripts without spaces, two characters.
_COUNTED = re.compile(rf"[^\s{_UNSPACED}]+|[{_UNSPACED}]{{1,2}}")
# Only the marks of Chinese and Japanese end a sentence without a space after them: 3.5 has two halves.
SENTENCE_END = re.compile(r"[.!?…؟۔।][\"')\]”’»]*(?=\s|$)|[。！？｡．][\"')\]”’」』）】]*")


def words(text: str) -> list[str]:
    """The runs of letters and digits in a text, in lower case; of scripts without spaces, the characters."""
    return WORD.findall(text.lower())


def count_words(text: str) -> int:
    """The words of a text; in scripts without spaces, two characters count as one."""
    return len(_COUNTED.findall(text))


def sentence_ends(text: str) -> list[int]:
    """The position after each sentence of a text; an unfinished last sentence has none."""
    return [match.end() for match in SENTENCE_END.finditer(text)]


def first_line(message: object) -> str:
    """The first line of an error or text, without a final full stop; the kind of an error that has no message."""
    return _lines(message)[0].rstrip(". ")


def last_line(message: object) -> str:
    """The last line of an error or text; the kind of an error that has no message."""
    return _lines(message)[-1]


def _lines(message: object) -> list[str]:
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return lines or [type(message).__name__ if isinstance(message, BaseException) else ""]


def describe_error(error: BaseException) -> str:
    """An error's kind and the first line of its message, without a final full stop."""
    return f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__


def format_percent(fraction: float) -> str:
    """ "10 %" for 0.1, "0.1 %" for 0.001."""
    return f"{100 * fraction:.4g} %"
