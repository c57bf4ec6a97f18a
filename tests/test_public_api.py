"""The public API: every name has a docstring and an example, and the examples run, in order, in one folder."""

from __future__ import annotations

import ast
import doctest
import inspect
import itertools
from pathlib import Path
from typing import Any

import pytest

import cotd

# In the order of a study's stages: each example uses what those before it made.
NAMES = [
    "load_config", "load_stages", "prepare", "annotate", "train", "sweep", "run_stages", "report", "promote", "Student", "Prediction",
    "Task", "METHODS", "CotdError",
]  # fmt: skip
YOUR_DATA = Path(__file__).parents[1] / "docs" / "your-data.md"


def docstring(name: str) -> str:
    """A name's docstring; of a constant the string after it in its module."""
    value = getattr(cotd, name)
    if not isinstance(value, dict):
        return inspect.getdoc(value) or ""
    module = inspect.getmodule(type(next(iter(value.values()))))
    assert module is not None
    body = ast.parse(inspect.getsource(module)).body
    for statement, following in itertools.pairwise(body):
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        if any(isinstance(t, ast.Name) and t.id == name for t in targets) and isinstance(following, ast.Expr):
            return inspect.cleandoc(ast.literal_eval(following.value))
    return ""


def test_the_list_of_names_is_complete() -> None:
    assert {*NAMES, "__version__"} == set(cotd.__all__) == set(dir(cotd))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_a_docstring_with_an_example(name: str) -> None:
    assert doctest.DocTestParser().get_examples(docstring(name)), f"cotd.{name}"


class AnyOutput(doctest.OutputChecker):
    """An example that names no output may print what it likes: progress, say."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        last = got.splitlines(keepends=True)[-1:]
        return not want or any(super(AnyOutput, self).check_output(want, text, optionflags) for text in (got, "".join(last)))


@pytest.mark.integration
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_docs import blocks

    monkeypatch.chdir(tmp_path)
    for _, _, name, body in blocks(YOUR_DATA):
        if name:
            Path(name).write_text(body, encoding="utf-8")
    known: dict[str, Any] = {"cotd": cotd}
    runner = doctest.DocTestRunner(AnyOutput(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for name in NAMES:
        test = doctest.DocTestParser().get_doctest(docstring(name), known, name, name, 0)
        failed = runner.run(test, clear_globs=False).failed
        known = test.globs
        assert not failed, f"cotd.{name}:\n{capsys.readouterr().out[-3000:]}"
