from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cotd.utils.keys import KeySet

keys = st.integers(0, 60).map(lambda n: f"{n:032x}")


@given(st.lists(st.lists(keys, max_size=9), max_size=12))
def test_a_set_of_keys_is_a_set(blocks: list[list[str]]) -> None:
    kept, known = KeySet(), set[str]()
    for block in blocks:
        expected = []
        for key in block:
            expected.append(key in known)
            known.add(key)
        assert kept.add(block) == expected
