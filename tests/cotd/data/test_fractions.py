"""Fractions of a training split."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from cotd.data.examples import select_fraction
from cotd.data.sources import embedded_reviews


def test_fractions_are_nested_and_sized(rotten_tomatoes: Path) -> None:

    train = embedded_reviews("rotten-tomatoes").split("train")
    parts = [select_fraction(train, f)["id"].to_list() for f in (0.01, 0.1, 0.5, 1.0)]
    assert [len(p) for p in parts] == [round(len(train) * f) for f in (0.01, 0.1, 0.5, 1.0)]
    for small, large in itertools.pairwise(parts):
        assert set(small) < set(large)
    tenth = select_fraction(train, 0.1)
    assert (tenth["label"] == "positive").mean() == pytest.approx((train["label"] == "positive").mean(), abs=0.05)
    assert len(select_fraction(train.head(3), 0.1)) == 1
