"""The built-in tasks, and tasks from files and studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cotd.errors import CotdError
from cotd.tasks.registry import get_task, parse_task, task_names


@pytest.mark.parametrize("name", task_names())
def test_a_built_in_task_is_whole(name: str) -> None:
    task = get_task(name)
    assert task.name == name
    assert task.instruction
    assert (task.folder / "prompts.yaml").is_file()


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(CotdError, match="Did you mean 'sentiment'"):
        get_task("sentimant")


def test_a_task_file_is_named_after_it_unless_it_says_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "stars.yaml"
    file.write_text("labels: [1, 2, 3, 4, 5]\nnoun: review\n")
    task = parse_task(str(file))
    assert (task.name, task.kind, tuple(task.labels)) == ("stars", "classification", ("1", "2", "3", "4", "5"))
    file.write_text("name: five\nlabels: [1, 2]\n")
    assert parse_task(str(file)).name == "five"


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"name": "x", "labls": ["a", "b"], "kind": "classification"}, "unknown key 'labls'. Did you mean 'labels'"),
        (
            {"name": "x", "labels": ["a", "b"], "kind": "clasification"},
            "unknown kind 'clasification'. Did you mean 'classification'",
        ),
        ({"name": "x"}, "'kind' is missing"),
        ({"name": "x", "labels": ["a"]}, "labels"),
        ({"name": "x", "labels": ["a", "A"]}, "A, a occur twice"),
        ({"name": "x", "labels": {"a": [1], "b": [1, "a"]}}, "'a' stands for 'b' and is a label itself"),
        ({"name": "x", "labels": ["a", "b"], "positive": "c"}, "positive: c is not among labels"),
        ({"name": "x", "labels": ["a", "b"], "verbalizers": {"a": "yes", "b": "Yes"}}, "two labels have the same one"),
        ({"name": "x", "kind": "numeric", "labels": ["a", "b"]}, "labels"),
        (["a"], "not a task"),
        ("nowhere.yaml", "cannot read the task file"),
    ],
)
def test_what_is_wrong_with_a_task_is_said(plain: Any, message: str) -> None:
    with pytest.raises(CotdError) as error:
        parse_task(plain)
    assert message in str(error.value)
