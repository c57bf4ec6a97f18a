"""YAML files and the `key=value` overrides that are applied to them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import yaml

from cotd.errors import CotdError


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        CotdError: the file does not exist, is not YAML, or holds something else than a mapping.
    """
    path = Path(path)
    if not path.is_file():
        shipped = sorted(str(p) for p in Path("tune_configs").rglob("*.yaml"))
        hint = f" Shipped: {', '.join(shipped)}." if shipped else ""
        advice = " `cotd configs` lists the studies that ship, and `cotd copy NAME` copies one here."
        raise CotdError(f"no configuration file '{path}'.{hint or advice}")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise CotdError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(plain, dict):
        raise CotdError(f"{path} is not a mapping of keys to values but a {type(plain).__name__}. Start with `name: …`.")
    return plain


def apply_override(plain: dict[str, Any], override: str) -> None:
    """Sets one `a.b=value` in a nested dict, in place; a number names an entry of a list, as in `a.0.b=value`.

    Raises:
        CotdError: the override has another form, its value is not YAML, or its key leads through a value.
    """
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
