"""Cleaning of texts, the same wherever a text is read."""

from __future__ import annotations

import html
import re

_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """One line of plain text: HTML line breaks and entities resolved, runs of white space folded to one space.

    NUL bytes become spaces and lone surrogates U+FFFD: neither can be stored.
    """
    return _SPACE.sub(" ", replace_surrogates(html.unescape(_BREAK.sub(" ", text)).replace("\x00", " "))).strip()


def replace_surrogates(text: str) -> str:
    """A text that can be encoded: pairs of surrogates are joined, lone ones replaced by U+FFFD."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
