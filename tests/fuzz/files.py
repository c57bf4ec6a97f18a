"""Files that nobody would call a table, or just about: what a user may point `cotd init` at."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from tests.hostile import HOSTILE

ENDINGS = ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "txt"]
NAMES = [
    "text",
    "label",
    "choices",
    "split",
    "id",
    "a",
    "",
    " ",
    "text",
    "Text ",
    "{text}",
    "{",
    "a: b",
    "- x",
    "# y",
    "null",
    "1",
    "ä\u2028",
    "x\x00",
]
CELLS = [
    "", "a warm and funny film", "a dull one, at length", "positive", "negative", "0", "1", "1.5", "1e999", "nan", "None", "true",
    '["a", "b"]',
    "['a', 'b']", "[", "{}", '"', "'", "a\nb", "train", "test", "=1+1", "yes", "no", "~", "2001-01-01", "a: b", "&x", "*x", "!!int 3",
]  # fmt: skip

cells = st.one_of(st.sampled_from(CELLS), st.sampled_from([h for h in HOSTILE if len(h) < 1000]), st.text(max_size=6))
names = st.lists(st.one_of(st.sampled_from(NAMES), st.text(max_size=5)), min_size=1, max_size=5)


@st.composite
def column(draw: st.DrawFn, count: int) -> list[str]:
    """Cells: texts, labels, numbers or options, with a wrong one now and then; or anything."""
    some = draw(st.lists(cells, min_size=1, max_size=4))
    kind = draw(st.sampled_from(["texts", "texts", "labels", "labels", "numbers", "options", "splits", "anything"]))
    made = {
        "texts": [f"A {some[0]} film of {i} words" for i in range(count)],
        "labels": [some[i % len(some)] for i in range(count)],
        "numbers": [str(i * 1.5) for i in range(count)],
        "options": [json.dumps([some[0], f"b{i}", "c"]) for i in range(count)],
        "splits": [("train", "dev", "test")[i % 3] for i in range(count)],
        "anything": [f"{some[i % len(some)]}{i % 7}" for i in range(count)],
    }[kind]
    if count and draw(st.integers(0, 3)) == 0:
        made[draw(st.integers(0, count - 1))] = draw(cells)
    return made


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """Rows of a few columns, whose cells repeat often enough to be labels; quoted, or not as they should be."""
    header = draw(names)
    count = draw(st.sampled_from([0, 1, 30, 30, 30]))
    columns = [draw(column(count)) for _ in header]
    rows = [list(row) for row in zip(*columns, strict=True)]
    separator = draw(st.sampled_from([",", ",", ",", "\t", ";", "|"]))
    quoted = draw(st.booleans())

    def line(parts: list[str]) -> str:
        return separator.join('"' + part.replace('"', '""') + '"' if quoted else part for part in parts)

    content = draw(st.sampled_from(["\n", "\r\n", "\r"])).join([line(header), *map(line, rows)])
    if draw(st.integers(0, 3)) == 0:
        content = "\n".join(json.dumps(dict(zip(header, row, strict=True))) for row in rows)
    return content.encode(draw(st.sampled_from(["utf-8"] * 12 + ["utf-16", "latin-1", "utf-8-sig"])), "replace")


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """(a file's name, its content)."""
    content = draw(tables()) if draw(st.integers(0, 9)) else draw(st.binary(max_size=60))
    if content and draw(st.integers(0, 5)) == 0:
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(st.binary(min_size=1, max_size=4)) + content[place:]
    stem = draw(st.sampled_from(["mine", "mine", "a b", "-x", "ä", ".hidden", "a.b", "null", "1", "{x}", "x: y", "#", "'"]))
    return f"{stem}.{draw(st.sampled_from(['csv'] * 20 + ENDINGS))}", content
