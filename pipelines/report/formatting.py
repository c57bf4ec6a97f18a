"""How a report writes numbers, methods and places in the grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cotd.utils.text import format_percent


def percentage(share: float) -> str:
    """ "63.1 %" for 0.631."""
    return f"{share * 100:.1f} %"


def accuracy(entry: dict[str, Any]) -> str:
    """ "63.1 % [60.2, 65.9]" for an entry with accuracy, ci_low and ci_high."""
    return f"{percentage(entry['accuracy'])} [{entry['ci_low'] * 100:.1f}, {entry['ci_high'] * 100:.1f}]"


def points(comparison: dict[str, Any]) -> str:
    """ "+4.8 [2.1, 7.5]" for a comparison, in percentage points."""
    return f"{signed(comparison['difference'])} [{signed(comparison['low'], '')}, {signed(comparison['high'], '')}]"


def signed(difference: float, plus: str = "+") -> str:
    """ "−1.5" for -0.015, in percentage points."""
    rounded = round(difference * 100, 1) + 0.0  # no "-0.0"
    return f"{'−' if rounded < 0 else plus if rounded > 0 else ''}{abs(rounded):.1f}"


def p_value(p: float) -> str:
    """ "0.013", "< 0.0001"."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{min(p, 1.0):.1f}"


def p_equals(p: float) -> str:
    """ "p = 0.013", "p < 0.0001"."""
    return f"p {'' if p < 1e-4 else '= '}{p_value(p)}"


def short(count: float) -> str:
    """ "8.4 M" for 8,391,936."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:,.0f}"


def span(low: str, high: str) -> str:
    """ "3.2 to 4.3", or the one number that both are."""
    return low if low == high else f"{low} to {high}"


def variant_of(entry: dict[str, Any]) -> str:
    """A method with its setting, in studies that vary one: "cot_labelled (rationale_weight 1)"."""
    return f"{entry['method']} ({entry['setting']})" if entry["setting"] else str(entry["method"])


def setting_of(comparison: dict[str, Any]) -> str:
    """The setting of a comparison's A, "(samples 4)", or an empty string."""
    return str(comparison["a"]).removeprefix(comparison["method_a"]).strip()


def size_title(group: dict[str, Any]) -> str:
    """ "tiny (8.4 M)": a size and its parameters."""
    return f"{group['size']} ({short(group['parameters'])})"


def fractions_of(comparison: dict[str, Any], between: str = " / ") -> str:
    """ "10 %", or "10 % / 100 %" where the two sides have different shares of the data."""
    if comparison["fraction"] is not None:
        return format_percent(comparison["fraction"])
    return f"{format_percent(comparison['fraction_a'])}{between}{format_percent(comparison['fraction_b'])}"


def place(comparison: dict[str, Any]) -> str:
    """ "tiny, 10 %, (samples 4)"."""
    return ", ".join(filter(None, [comparison["size"], fractions_of(comparison), setting_of(comparison)]))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 1) -> list[str]:
    """A table's lines; columns from `numbers` on are aligned right."""
    rule = ["---"] * numbers + ["---:"] * (len(header) - numbers)
    return [line(header), f"|{'|'.join(rule)}|", *map(line, rows), ""]


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
