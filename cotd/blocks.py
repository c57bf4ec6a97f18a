"""What every configuration is made of: blocks of checked keys, read from YAML plus `key=value` overrides."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cotd.errors import CotdError, nearest

# A value that was meant to be a name, and may be the secret itself, is not shown.
NEVER_SHOWN = {"key_env", "base_url"}


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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


BlockType = TypeVar("BlockType", bound=Block)


def check_block(
    kind: type[BlockType], plain: dict[str, Any], where: str, more: Callable[[dict[str, Any]], list[str]] = lambda _: []
) -> BlockType:
    """A configuration of a plain dict.

    Args:
        more: finds further problems where pydantic has found some and stopped.

    Raises:
        CotdError: all problems at once; an unknown key is answered with the nearest known one.
    """
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        found = [describe_problem(kind, e) for e in error.errors()]
        found += [p for p in more(plain) if not any(p in f for f in found)]
        raise CotdError(*(f"{where}: {p}" for p in found)) from error


def describe_problem(kind: type[Block], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = known_keys(kind, location[:-1])
        return f"unknown key '{key}'.{nearest(location[-1], known)} Known here: {', '.join(known)}."
    if problem["type"] == "missing":
        return f"'{key}' is missing."
    message = re.sub(r"^Value error, ", "", problem["msg"])
    if not key:
        return message
    shown = isinstance(problem["input"], (str, int, float)) and location[-1] not in NEVER_SHOWN
    given = f" (given: {problem['input']!r})" if shown else ""
    return f"{key}: {message}{given}"


def known_keys(kind: type[Block], location: list[str]) -> list[str]:
    """The keys that the block at `location` of a configuration knows."""
    block: type[BaseModel] = kind
    for part in location:
        annotation = block.model_fields[part].annotation if part in block.model_fields else None
        annotation = next((a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        block = annotation
    return sorted(block.model_fields)


def digest(plain: Any) -> str:
    """16 hex digits that identify a JSON-able value, whatever the order of its keys."""
    canonical = json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
