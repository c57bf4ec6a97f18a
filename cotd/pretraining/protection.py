"""Keeps protected text out of a corpus: no long run of a test review's words may be pretrained on."""

from __future__ import annotations

import re
from collections.abc import Iterable

# A document that shares 13 words in a row with a protected text is taken to contain it (Brown et al. 2020, appendix C);
# of a shorter protected text, a sentence of a review say, 8 words in a row; below that, only the whole text counts.
LONG_RUN = 13
SHORT_RUN = 8

_WORD = re.compile(r"[^\W_]+")


def normalised_words(text: str) -> list[str]:
    """The text's words, case-folded, without punctuation."""
    return _WORD.findall(text.casefold())


def runs(words: list[str], length: int) -> Iterable[str]:
    """Every run of `length` words, as one string each."""
    return (" ".join(words[i : i + length]) for i in range(len(words) - length + 1))


class ProtectedTexts:
    """A set of texts that no document of a corpus may contain."""

    def __init__(self, texts: Iterable[str]):
        self.whole: set[str] = set()
        self.short: set[str] = set()
        self.long: set[str] = set()
        for text in texts:
            words = normalised_words(text)
            self.whole.add(" ".join(words))
            if len(words) >= LONG_RUN:
                self.long.update(runs(words, LONG_RUN))
            elif len(words) >= SHORT_RUN:
                self.short.update(runs(words, SHORT_RUN))

    def contained_in(self, document: str) -> bool:
        """Whether the document equals a protected text, or shares a run of words with one."""
        words = normalised_words(document)
        return (
            " ".join(words) in self.whole
            or any(run in self.long for run in runs(words, LONG_RUN))
            or any(run in self.short for run in runs(words, SHORT_RUN))
        )
