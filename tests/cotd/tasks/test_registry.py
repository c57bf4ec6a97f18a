"""The built-in tasks."""

from __future__ import annotations

import pytest

from cotd.errors import CotdError
from cotd.tasks.registry import TASKS, get_task


@pytest.mark.parametrize("name", TASKS)
def test_a_built_in_task_is_whole(name: str) -> None:
    task = get_task(name)
    assert task.name == name
    assert task.verbalizers.keys() == set(task.labels)
    assert {task.positive, *task.spellings.values()} <= set(task.labels)
    assert all(task.parse_label(spelling) == label for spelling, label in task.spellings.items())
    assert (task.folder / "prompts.yaml").is_file()


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(CotdError, match="Did you mean 'sentiment'"):
        get_task("sentimant")
