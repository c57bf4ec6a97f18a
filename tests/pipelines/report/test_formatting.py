"""How a report writes numbers and places."""

from __future__ import annotations

from pipelines.report.formatting import fractions_of, p_equals, place, points, short, signed


def test_numbers_are_rounded_for_readers() -> None:
    assert [signed(x) for x in (0.048, -0.015, -0.0001)] == ["+4.8", "−1.5", "0.0"]
    assert points({"difference": 0.048, "low": 0.021, "high": 0.075}) == "+4.8 [2.1, 7.5]"
    assert [p_equals(p) for p in (0.5, 0.0131, 0.00001)] == ["p = 0.5", "p = 0.013", "p < 0.0001"]
    assert [short(n) for n in (8_391_936, 1200, 7)] == ["8.39 M", "1.2 k", "7"]


def test_places_name_both_fractions_where_they_differ() -> None:
    same = {"size": "tiny", "fraction": 0.1, "a": "cot_labelled (samples 4)", "method_a": "cot_labelled"}
    assert place(same) == "tiny, 10 %, (samples 4)"
    assert fractions_of({"fraction": None, "fraction_a": 0.1, "fraction_b": 1.0}, " against ") == "10 % against 100 %"
