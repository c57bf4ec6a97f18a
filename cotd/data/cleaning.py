"""Cleaning of texts, the same wherever a text is read."""

from __future__ import annotations

import html
import re

_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
# How often entities of entities are resolved; bounds the time for a hostile text.
MAX_ROUNDS = 10
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """One line of plain text: HTML line breaks and entities resolved, runs of white space folded to one space.

    NUL bytes become spaces and lone surrogates U+FFFD: neither can be stored. A cleaned text stays as it is, wherever it is
    cleaned again: entities are resolved until none is left.
    """
    for _ in range(MAX_ROUNDS):
        if (plain := html.unescape(_BREAK.sub(" ", text)).replace("\x00", " ")) == text:
            break
        text = plain
    return _SPACE.sub(" ", replace_surrogates(text)).strip()


def replace_surrogates(text: str) -> str:
    """A text that can be encoded: pairs of surrogates are joined, lone ones replaced by U+FFFD."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
