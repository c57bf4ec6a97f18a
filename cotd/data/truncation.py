"""Cutting what is too long: a text for the teacher, at a sentence's end where there is one, and token ids for a student."""

from __future__ import annotations

import re
from typing import Literal

# Of these marks only those of Chinese and Japanese end a sentence without a space after them: 3.5 has two halves.
SENTENCE_END = re.compile(r"[.!?…؟۔।][\"')\]”’»]*(?=\s|$)|[。！？｡．][\"')\]”’」』）】]*")

SPACE = re.compile(r"\s*")

Truncation = Literal["head", "head_tail"]


def truncate(ids: list[int], limit: int, tail: int = 1) -> list[int]:
    """At most `limit` token ids: the first of them, and the last `tail`; the very last one ends the sequence."""
    return ids if len(ids) <= limit else [*ids[: max(0, limit - tail)], *ids[-tail:]]


def tail_length(truncation: Truncation, limit: int) -> int:
    """How many of the last tokens stay of an input that is cut to `limit`.

    `head`: its last alone, which ends the sequence. `head_tail`: three quarters of what is read, as in Sun et al. (2019,
    section 5.3.1): what a review comes to stands at its end.
    """
    return 1 if truncation == "head" else max(1, limit - limit // 4)


def head_length(truncation: Truncation, limit: int) -> int:
    """How many of a review's first tokens a teacher is shown of `limit`: as many as a student reads."""
    return limit if truncation == "head" else limit - tail_length(truncation, limit)


def tokens_by_length(text: str) -> int:
    """About how many tokens a text has: one for four bytes of UTF-8, as English has in most vocabularies."""
    return -(-len(text.encode()) // 4)


def fit_by_length(text: str, limit: int) -> str:
    """A text cut to about `limit` tokens."""
    if tokens_by_length(text) <= limit:
        return text
    return cut_text(text, len(text.encode()[: 4 * limit].decode(errors="ignore")))


def fit_end_by_length(text: str, limit: int) -> str:
    """The end of a text, of about `limit` tokens."""
    if tokens_by_length(text) <= limit:
        return text
    end = text[-4 * limit - 1 :]  # no character is less than a byte
    return cut_beginning(end, len(end) - len(end.encode()[-4 * limit :].decode(errors="ignore")))


def cut_text(text: str, end: int) -> str:
    """At most the first `end` characters of a text: to the last sentence's end in their second half, else to a word's."""
    sentences = [m.end() for m in SENTENCE_END.finditer(text[: end + 1]) if end // 2 <= m.end() <= end]
    if sentences:
        return text[: sentences[-1]]
    space = text.rfind(" ", end // 2, end + 1)
    return text[: space if space > 0 else end]


def cut_beginning(text: str, start: int) -> str:
    """A text without at least its first `start` characters: from a sentence's beginning in the first half of the rest, else a
    word's."""
    if start <= 0:
        return text
    latest = start + (len(text) - start) // 2
    for sentence in SENTENCE_END.finditer(text[: latest + 1]):
        following = SPACE.match(text, sentence.end())
        if following and start <= following.end() <= latest:
            return text[following.end() :]
    space = text.find(" ", start - 1, latest)
    return text[space + 1 if space >= 0 else start :]
