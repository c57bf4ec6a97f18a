from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cotd.config.overrides import apply_override, read_yaml
from cotd.errors import CotdError


def problem_of(path: Path) -> str:
    with pytest.raises(CotdError) as caught:
        read_yaml(path)
    return str(caught.value)


@pytest.mark.parametrize(("content", "kind"), [("- a\n- b", "list"), ("hello", "str"), ("", "NoneType")])
def test_yaml_that_is_not_a_mapping(tmp_path: Path, content: str, kind: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    problem = problem_of(tmp_path / "a.yaml")
    assert f"is not a mapping of keys to values but a {kind}. Start with `name: …`." in problem


@pytest.mark.parametrize("content", [b"a: [1", b"a: \xff\xfe", b"a: \x00", b"name: 2024-99-99"])
def test_what_is_not_yaml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    problem = problem_of(tmp_path / "a.yaml")
    assert "is not valid YAML" in problem


def test_a_missing_file_names_those_that_ship(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    problem = problem_of(Path("demo.yaml"))
    assert "no configuration file 'demo.yaml'. Shipped: tune_configs/" in problem
    assert "tune_configs/demo.yaml" in problem


keys = st.lists(st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1), min_size=1, max_size=4)
scalars = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=4
)


@settings(max_examples=30)
@given(keys, values)
def test_an_override_sets_what_its_yaml_says(path: list[str], value: Any) -> None:
    plain: dict[str, Any] = {"kept": {"as": "it is"}, path[0]: {}}
    apply_override(plain, f"{'.'.join(path)}={yaml.safe_dump(value, default_flow_style=True)}")
    node: Any = plain
    for part in path:
        node = node[part]
    assert node == value
    assert path[0] == "kept" or plain["kept"] == {"as": "it is"}


@given(st.text())
@example("a=2024-99-99")
@example("a=0b_")
@example("a={b")
@example("a=!!python/object:os.system {}")
@example("=1")
@example("a")
def test_any_text_is_an_override_or_a_readable_error(text: str) -> None:
    with contextlib.suppress(CotdError):
        apply_override({}, text)


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(CotdError, match="'name' is a value, not a block of keys"):
        apply_override({"name": "small"}, "name.first=x")


def test_an_override_reaches_into_a_list() -> None:
    plain = {"grid": {"include": [{"size": ["a"]}, {"size": ["b"]}]}}
    apply_override(plain, "grid.include.1.size=[c]")
    apply_override(plain, "grid.include.0.seed=5")
    assert plain == {"grid": {"include": [{"size": ["a"], "seed": 5}, {"size": ["c"]}]}}
    for wrong in ("grid.include.2.size=x", "grid.include.size=x"):
        with pytest.raises(CotdError, match=r"is a list of 2; name an entry as include\.0"):
            apply_override(plain, wrong)
