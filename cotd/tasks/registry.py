"""Tasks by name, from a file, or written in a study: the built-in ones have a folder each beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cotd.config.model import validate_config
from cotd.errors import CotdError, nearest, unknown
from cotd.tasks.base import Task
from cotd.tasks.classification import Classification
from cotd.tasks.multiple_choice import MultipleChoice
from cotd.tasks.numeric import Numeric

KINDS: dict[str, type[Task]] = {"classification": Classification, "multiple_choice": MultipleChoice, "numeric": Numeric}
HERE = Path(__file__).parent
TASK_FILES = (".yaml", ".yml")


def task_names() -> list[str]:
    """The built-in tasks."""
    return sorted(file.parent.name for file in HERE.glob("*/task.yaml"))


@cache
def get_task(name: str) -> Task:
    """The built-in task called `name`.

    Raises:
        CotdError: there is no such task.
    """
    if name not in task_names():
        raise CotdError(unknown("task", name, task_names()))
    return read_task(HERE / name / "task.yaml", name)


def is_built_in(task: Task) -> bool:
    """Whether a task has the answers of the built-in one of its name; its words may be a study's own."""
    if task.name not in task_names():
        return False
    built_in = get_task(task.name)
    return (built_in.kind, built_in.labels) == (task.kind, task.labels)


def read_task(file: Path, name: str) -> Task:
    """The task of a YAML file; it is called `name` unless the file says otherwise.

    Raises:
        CotdError: the file cannot be read, or all that is wrong with it.
    """
    try:
        plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CotdError(f"cannot read the task file '{file}': {error}") from error
    return parse_task({"name": name, **plain} if isinstance(plain, dict) else plain, str(file))


def parse_task(plain: Any, where: str = "task") -> Task:
    """The task that a study's `task` names or holds: a built-in one's name, a task file, or its keys.

    Args:
        where: what messages call the place that holds the keys.

    Raises:
        CotdError: all that is wrong with it.
    """
    if isinstance(plain, Task):
        return plain
    if isinstance(plain, str):
        if not plain.endswith(TASK_FILES):
            return get_task(plain)
        file = Path(plain).expanduser()
        return read_task(file, file.stem)
    if not isinstance(plain, Mapping):
        names = ", ".join(task_names())
        raise CotdError(f"{where}: not a task. Name a built-in one ({names}) or a task file, or write name, kind and labels.")
    kind = plain.get("kind", "classification" if "labels" in plain else None)
    if not isinstance(kind, str) or kind not in KINDS:
        if kind is None:
            raise CotdError(f"{where}: 'kind' is missing. Kinds: {', '.join(KINDS)}.")
        raise CotdError(f"{where}: unknown kind '{kind}'.{nearest(str(kind), KINDS)} Kinds: {', '.join(KINDS)}.")
    return validate_config(KINDS[kind], dict(plain), where)
