"""The built-in tasks that tests use."""

from cotd.tasks.registry import get_task

SENTIMENT = get_task("sentiment")
