"""The built-in tasks: a folder each, with task.yaml, prompts.yaml and checklist.yaml."""

from __future__ import annotations

from pathlib import Path

import yaml

from cotd.errors import CotdError, unknown
from cotd.tasks.base import Task


def load_task(folder: Path) -> Task:
    """The task whose `task.yaml` is in a folder; its name is the folder's."""
    return Task.from_dict({"name": folder.name, **yaml.safe_load((folder / "task.yaml").read_text(encoding="utf-8"))})


TASKS = {file.parent.name: load_task(file.parent) for file in sorted(Path(__file__).parent.glob("*/task.yaml"))}
SENTIMENT = TASKS["sentiment"]


def get_task(name: str) -> Task:
    """The built-in task called `name`.

    Raises:
        CotdError: there is no such task.
    """
    if name not in TASKS:
        raise CotdError(unknown("task", name, TASKS))
    return TASKS[name]
