"""The built-in tasks."""

from __future__ import annotations

from cotd.errors import CotdError, nearest
from cotd.tasks.base import Task

SENTIMENT = Task(
    name="sentiment",
    labels=("negative", "positive"),
    verbalizers={"negative": "negative", "positive": "positive"},
    positive="positive",
    spellings={
        "0": "negative", "neg": "negative", "rotten": "negative",
        "1": "positive", "pos": "positive", "fresh": "positive",
    },
)  # fmt: skip

TASKS = {SENTIMENT.name: SENTIMENT}


def get_task(name: str) -> Task:
    """The registered task called `name`.

    Raises:
        CotdError: there is no such task.
    """
    if name not in TASKS:
        raise CotdError(f"unknown task '{name}'; known: {', '.join(TASKS)}.{nearest(name, list(TASKS))}")
    return TASKS[name]
