"""Configuration files: YAML plus `key=value` overrides."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import yaml

from cotd.errors import CotdError


def read_yaml(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """A YAML mapping with `a.b=value` overrides applied.

    Raises:
        CotdError: no such file, not YAML, not a mapping, or an override that is none.
    """
    path = Path(path)
    if not path.is_file():
        shipped = sorted(str(p) for p in Path("tune_configs").rglob("*.yaml"))
        hint = f" Shipped: {', '.join(shipped)}." if shipped else ""
        raise CotdError(f"no configuration file '{path}'.{hint}")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise CotdError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(plain, dict):
        raise CotdError(f"{path} is not a mapping of keys to values but a {type(plain).__name__}. Start with `name: …`.")
    for override in overrides or []:
        apply_override(plain, override)
    return plain


def apply_override(plain: dict[str, Any], override: str) -> None:
    """Sets one `a.b=value` in a nested dict, in place; a number names an entry of a list, as in `a.0.b=value`."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise CotdError(f"override '{override}' is not of the form key=value, for example training.steps=100")
    *parents, last = key.strip().split(".")
    node: Any = plain
    for parent, child_key in itertools.pairwise([*parents, last]):
        child = node.setdefault(parent, {}) if isinstance(node, dict) else node[int(parent)]
        if isinstance(child, list) and not (child_key.isdecimal() and int(child_key) < len(child)):
            raise CotdError(f"override '{override}': '{parent}' is a list of {len(child)}; name an entry as {parent}.0")
        if not isinstance(child, (dict, list)):
            raise CotdError(f"override '{override}': '{parent}' is a value, not a block of keys")
        node = child
    try:
        node[int(last) if isinstance(node, list) else last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise CotdError(f"override '{override}': the value is not valid YAML: {error}") from error
