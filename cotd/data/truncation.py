"""Cutting what is too long: a text for the teacher, if possible at the end of a sentence, and token ids for a student."""

from __future__ import annotations

from typing import Literal

from cotd.utils.text import sentence_ends

Truncation = Literal["head", "head_tail"]


def truncate(ids: list[int], limit: int, tail: int = 1) -> list[int]:
    """At most `limit` token ids, the last `tail` among them; the very last one ends the sequence."""
    return ids if len(ids) <= limit else [*ids[: max(0, limit - tail)], *ids[-tail:]]


def tail_length(truncation: Truncation, limit: int) -> int:
    """The number of last tokens that stay of an input that is cut to `limit`.

    `head`: only the one that ends the sequence. `head_tail`: three quarters of the limit, as in Sun et al. (2019,
    section 5.3.1): the verdict of an example is at its end.
    """
    return 1 if truncation == "head" else max(1, limit - limit // 4)


def head_length(truncation: Truncation, limit: int) -> int:
    """The number of first tokens that a teacher is shown of a text cut to `limit`, as many as a student reads."""
    return limit if truncation == "head" else limit - tail_length(truncation, limit)


def tokens_by_length(text: str) -> int:
    """About how many tokens a text has: one for four bytes of UTF-8, as English in most vocabularies."""
    return -(-len(text.encode()) // 4)


def fit_by_length(text: str, limit: int) -> str:
    """The beginning of a text, about `limit` tokens long."""
    if tokens_by_length(text) <= limit:
        return text
    return cut_text(text, len(text.encode()[: 4 * limit].decode(errors="ignore")))


def fit_end_by_length(text: str, limit: int) -> str:
    """The end of a text, about `limit` tokens long."""
    if tokens_by_length(text) <= limit:
        return text
    end = text[-4 * limit - 1 :]  # a character has at least a byte
    return cut_beginning(end, len(end) - len(end.encode()[-4 * limit :].decode(errors="ignore")))


def cut_text(text: str, end: int) -> str:
    """At most the first `end` characters of a text: up to the last sentence end in their second half, else to a word's end."""
    ends = [e for e in sentence_ends(text[: end + 1]) if end // 2 <= e <= end]
    if ends:
        return text[: ends[-1]]
    space = text.rfind(" ", end // 2, end + 1)
    return text[: space if space > 0 else end]


def cut_beginning(text: str, start: int) -> str:
    """A text without at least its first `start` characters: from the first sentence that begins in the first half of the rest,
    else from a word."""
    if start <= 0:
        return text
    latest = start + (len(text) - start) // 2
    for end in sentence_ends(text[: latest + 1]):
        following = text[end : latest + 1]
        begin = end + len(following) - len(following.lstrip())
        if start <= begin <= latest:
            return text[begin:]
    space = text.find(" ", start - 1, latest)
    return text[space + 1 if space >= 0 else start :]
