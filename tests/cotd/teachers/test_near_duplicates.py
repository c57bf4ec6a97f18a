"""Near-duplicate rationales are those of the definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cotd.teachers.near_duplicates import near_duplicate_rows

words = st.lists(st.sampled_from(["a", "warm", "and", "funny", "film", "that", "moved", "me", "to", "tears"]), max_size=12)


@given(st.lists(words.map(" ".join), max_size=12))
def test_near_duplicates_are_those_of_the_definition(texts: list[str]) -> None:
    """Equal texts always are; every one has an earlier text that is that similar."""

    def trigrams(text: str) -> set[tuple[str, ...]]:
        split = text.split()
        return {tuple(split[i : i + 3]) for i in range(max(1, len(split) - 2))}

    repeats = near_duplicate_rows(texts, 0.8)
    for i, text in enumerate(texts):
        indices = [len(trigrams(t) & trigrams(text)) / len(trigrams(t) | trigrams(text)) for t in texts[:i]]
        assert repeats[i] <= (max(indices, default=0) >= 0.8)
        assert repeats[i] >= (text in texts[:i])


def test_most_near_duplicates_are_found() -> None:
    """Of 200 texts of 40 words, copies with one word changed have an index of about 0.85."""
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i}" for i in range(1000)]
    texts = [" ".join(rng.choice(vocabulary, 40)) for _ in range(200)]
    copies = [" ".join([*text.split()[:-1], "changed"]) for text in texts]
    repeats = near_duplicate_rows(texts + copies, 0.8)
    assert not repeats[:200].any()
    assert repeats[200:].all()
