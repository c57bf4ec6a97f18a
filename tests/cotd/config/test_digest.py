from __future__ import annotations

from cotd.config.digest import digest


def test_the_digest_ignores_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1.0, None]}) == digest({"b": [1.0, None], "a": 1}) != digest({"a": 1, "b": [None, 1.0]})
