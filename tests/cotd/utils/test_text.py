"""Lines of errors, sentences and percentages."""

from __future__ import annotations

import pytest

from cotd.utils.text import describe_error, first_line, format_percent, last_line, sentence_ends, words


@pytest.mark.parametrize(
    ("error", "first", "last", "described"),
    [
        (TimeoutError(), "TimeoutError", "TimeoutError", "TimeoutError"),
        (ValueError(" \n"), "ValueError", "ValueError", "ValueError"),
        (ValueError("\nNo.\n\nReally. \n"), "No", "Really.", "ValueError: No"),
        (KeyError("a"), "'a'", "'a'", "KeyError: 'a'"),
    ],
)
def test_an_error_has_a_first_and_a_last_line(error: Exception, first: str, last: str, described: str) -> None:
    assert (first_line(error), last_line(error), describe_error(error)) == (first, last, described)


def test_an_empty_text_has_an_empty_line() -> None:
    assert (first_line(""), last_line(" \n")) == ("", "")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ('It got 3.5 stars. "Why?" I asked... so', ["It got 3.5 stars.", ' "Why?"', " I asked..."]),
        ("很好。我喜欢！还", ["很好。", "我喜欢！"]),
        ("", []),
    ],
)
def test_sentences_end(text: str, sentences: list[str]) -> None:
    ends = sentence_ends(text)
    assert [text[a:b] for a, b in zip([0, *ends], ends, strict=False)] == sentences


def test_words_are_letters_and_digits() -> None:
    assert words("It's a 3.5-star FILM, naïve_ly") == ["it", "s", "a", "3", "5", "star", "film", "naïve", "ly"]


@pytest.mark.parametrize(("fraction", "text"), [(0.1, "10 %"), (0.001, "0.1 %"), (1 / 3, "33.33 %")])
def test_percentages(fraction: float, text: str) -> None:
    assert format_percent(fraction) == text
