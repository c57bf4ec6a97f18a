"""What every configuration is made of: blocks of checked keys, whose problems are reported all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from cotd.errors import CotdError, nearest

# Their values are not shown in messages: what was meant to be a name or an address may hold the secret itself.
NEVER_SHOWN = {"key_env", "base_url", "source", "uri"}


class ConfigModel(BaseModel):
    """A block of a configuration: unknown keys are errors, and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ConfigType = TypeVar("ConfigType", bound=ConfigModel)


def validate_config(
    kind: type[ConfigType], plain: dict[str, Any], where: str, more: Callable[[dict[str, Any]], list[str]] = lambda _: []
) -> ConfigType:
    """A configuration from a plain dict.

    Args:
        where: what messages call the configuration, such as its file.
        more: finds further problems where pydantic has found some and stopped.

    Raises:
        CotdError: all problems at once; unknown keys come with the nearest known one.
    """
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        problems = [describe_problem(kind, e) for e in error.errors()]
        problems += [p for p in more(plain) if not any(p in known for known in problems)]
        raise CotdError(*(f"{where}: {p}" for p in problems)) from error


def describe_problem(kind: type[ConfigModel], problem: Any) -> str:
    """One of pydantic's problems as a sentence that names its key."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = known_keys(kind, location[:-1])
        return f"unknown key '{key}'.{nearest(location[-1], known)} Known here: {', '.join(known)}."
    if problem["type"] == "missing":
        return f"'{key}' is missing."
    if problem["type"] == "model_type" and key:
        return f"{key}: expected a block of keys: {', '.join(known_keys(kind, location))}."
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    shown = isinstance(problem["input"], (str, int, float)) and location[-1] not in NEVER_SHOWN
    return f"{key}: {message}" + (f" (given: {problem['input']!r})" if shown else "")


def known_keys(kind: type[ConfigModel], location: list[str]) -> list[str]:
    """The keys that the block at `location` of a configuration knows."""
    block: type[BaseModel] = kind
    for part in location:
        annotation = block.model_fields[part].annotation if part in block.model_fields else None
        annotation = next((a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        block = annotation
    return sorted(block.model_fields)
