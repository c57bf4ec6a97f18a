"""Configurations that nobody should write: valid studies with wrong keys, values, types, nesting, anchors and tags."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.hostile import HOSTILE

STUDIES = sorted((Path(__file__).parents[2] / "tune_configs").glob("*.yaml"))
KEYS = [
    "name", "variant", "variants", "task", "data", "teacher", "sizes", "grid", "training", "search", "resources", "tracking", "storage",
    "source", "input", "columns", "label", "text", "choices", "split", "labels", "kind", "model", "strategy", "prompts", "calibration",
    "filters", "api", "imported", "method", "fraction", "size", "seed", "exclude", "steps", "finetune", "optimizer", "space", "asha",
    "", "0", "a.b", "__class__", "model_config",
]  # fmt: skip
PLACES = [
    "/", ".", "..", "~", "nowhere.csv", "embedded:", "embedded:nothing", "models:/", "models:/x@y", "file:///", "nothing://x",
    "memory://",
    "http://user:word@127.0.0.1:1/x", "http://[", "{text}", "{", "{}", "{0}", "{a!r:>{b}}", "%s", "auto", "null", "1e3", "0x1f",
    "=", "a=b",
]  # fmt: skip
# YAML that is more than keys and values; some of it is not YAML.
PIECES = [
    "&a [*a]", "&a {b: *a}", "*nowhere", "!!python/object/apply:os.getcwd []", "!!binary aGFsbG8=", "!!set {a, b}",
    "!!timestamp 2001-01-01",
    "!!omap [a: 1]", "!unknown x", "{a: 1, a: 2}", "? [a, b]\n: c", "{[a]: b}", "{? {a: b}: c}", "{null: x}", "{1.5: x}",
    "<<: x", "<<: {a: b}",
    "<<: [1, {a: b}]", "- x", "\t", "|\n  text", ">-", "'", '"', "[", "}", "%", "@", "`", "---\n", "...\n", "--- !!str\n",
    "\x00", "\x7f", "\u2028",
    "0o777", "1_000", "190:20:30", ".nan", "-.inf", "~", "2001-12-14t21:59:43.10-05:00", "[" * 200, "{a: " * 200 + "}" * 200,
]  # fmt: skip

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([-1, 0, 2**31, 2**63, 10**400]), st.floats(), st.text(max_size=8),
    st.sampled_from(PLACES), st.sampled_from([h for h in HOSTILE if len(h) < 1000]), st.binary(max_size=4), st.dates(), st.datetimes(),
)  # fmt: skip
keys = st.one_of(
    st.sampled_from(KEYS), st.none(), st.booleans(), st.integers(-2, 2), st.floats(), st.text(max_size=4), st.dates()
)
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)), max_leaves=6
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in nested mappings and lists."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def at(node: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path."""
    for key in path:
        node = node[key]
    return node


@st.composite
def mutated(draw: st.DrawFn, plain: dict[str, Any]) -> Any:
    """A configuration with some of its keys and values changed."""
    plain = copy.deepcopy(plain)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        every = places(plain)
        path = draw(st.sampled_from(every))
        if not path:
            continue
        parent, key = at(plain, path[:-1]), path[-1]
        change = draw(st.sampled_from(["replace", "replace", "replace", "drop", "rename", "wrap", "move"]))
        if change == "replace":
            parent[key] = draw(values)
        elif change == "drop":
            del parent[key]
        elif change == "wrap":
            parent[key] = draw(st.sampled_from([[parent[key]], {draw(keys): parent[key]}, [[parent[key]]] * 2]))
        elif change == "move":
            parent[key] = copy.deepcopy(at(plain, draw(st.sampled_from([p for p in every if p[: len(path)] != path]))))
        elif isinstance(parent, dict):
            parent[draw(keys)] = parent.pop(key)
    return plain


def dumped(plain: Any) -> str:
    """The configuration as YAML; a value that no YAML can hold is written as its repr."""
    yaml.SafeDumper.add_multi_representer(object, lambda dumper, value: dumper.represent_str(repr(value)))
    return str(yaml.safe_dump(plain, allow_unicode=True))


@st.composite
def configurations(draw: st.DrawFn) -> bytes:
    """The bytes of a study's file."""
    plain = yaml.safe_load(draw(st.sampled_from(STUDIES)).read_text())
    if "variants" in plain:
        plain["variant"] = draw(st.sampled_from(sorted(plain["variants"])))
    changed = draw(mutated(plain))
    lines = dumped(changed).splitlines(keepends=True)
    for _ in range(draw(st.sampled_from([0] * 14 + [1, 2]))):
        place = draw(st.integers(0, max(0, len(lines) - 1)))
        piece = draw(st.sampled_from(PIECES))
        if draw(st.booleans()) and lines:
            lines[place] = f"{lines[place].partition(':')[0]}: {piece}\n"
        else:
            lines.insert(place, piece)
    encoded = "".join(lines).encode(draw(st.sampled_from(["utf-8"] * 18 + ["utf-16", "utf-8-sig"])), "surrogatepass")
    if draw(st.integers(0, 19)) == 0:
        cut = draw(st.integers(0, len(encoded)))
        encoded = encoded[:cut] + draw(st.binary(max_size=3)) + encoded[cut + draw(st.integers(0, 9)) :]
    return encoded


overrides = st.one_of(
    st.builds(
        lambda path, value: f"{path}={value}",
        st.lists(st.sampled_from([*KEYS, "0", "1", "-1", "99"]), min_size=1, max_size=4).map(".".join),
        st.one_of(st.sampled_from(PIECES + PLACES), st.text(max_size=6), scalars.map(str)),
    ),
    st.text(max_size=12),
)
changes = st.one_of(st.just([]), st.just([]), st.lists(overrides, max_size=2))
