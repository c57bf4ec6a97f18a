"""Behavioural tests of a student, in the spirit of CheckList (Ribeiro et al. 2020): reported, not asserted.

A task's tests are its `checklist.yaml`, which says what they mean; here they become texts, and are scored.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cotd.errors import CotdError
from cotd.students.student import Prediction, Student
from cotd.tasks.base import Task

# How far a probability may fall in a test of direction: CheckList's tolerance.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Case:
    """A text, and the one that it is compared with, if any."""

    text: str
    original: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a student did in one test.

    Attributes:
        failures: texts that it failed, at most three.
    """

    kind: str
    name: str
    cases: int
    passed: int
    failures: tuple[str, ...]

    @property
    def pass_rate(self) -> float:
        """The fraction of cases passed."""
        return self.passed / self.cases


def load_checklist(task: Task) -> dict[str, Any]:
    """The content of a task's `checklist.yaml`: `tests`, `texts` and `contractions`.

    Raises:
        CotdError: the task has none.
    """
    file = task.folder / "checklist.yaml"
    if not file.is_file():
        raise CotdError(
            f"the task '{task.name}' of this student has no behavioural tests: they come with a built-in task, as with sentiment "
            "and nli."
        )
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def check_behaviour(student: Student) -> list[Outcome]:
    """Runs every behavioural test of its task on a student.

    Raises:
        CotdError: the task has no tests, or the student reads rationales.
    """
    checklist = load_checklist(student.task)
    tests = [(test, make_cases(test, checklist["texts"], checklist["contractions"])) for test in checklist["tests"]]
    texts = list(dict.fromkeys(t for _, cases in tests for case in cases for t in (case.text, case.original) if t))
    predictions = dict(zip(texts, student.predict(texts), strict=True))

    def passes(test: Mapping[str, Any], case: Case) -> bool:
        new, old = predictions[case.text], predictions[case.original or case.text]
        if test["kind"] == "invariance":
            return new.label == old.label
        if test["kind"] == "direction":
            return probability(new, test["label"]) >= probability(old, test["label"]) - TOLERANCE
        return new.label == test["label"]

    outcomes = []
    for test, cases in tests:
        failed = [case.text for case in cases if not passes(test, case)]
        outcomes.append(Outcome(test["kind"], test["name"], len(cases), len(cases) - len(failed), tuple(failed[:3])))
    return outcomes


def probability(prediction: Prediction, label: str) -> float:
    """The probability of a label of a fixed set; tasks with tests have one."""
    return (prediction.probabilities or {})[label]


def make_cases(test: Mapping[str, Any], texts: Sequence[str], contractions: Mapping[str, str]) -> list[Case]:
    """The cases of a test; texts that its change leaves as they are make none."""
    if "append" in test:
        return [Case(f"{text} {test['append']}", text) for text in texts]
    if "change" in test:
        changed = [typo(text) if test["change"] == "typo" else contract(text, contractions) for text in texts]
        return [Case(new, text) for new, text in zip(changed, texts, strict=True) if new != text]
    cases = []
    for template in test["templates"]:
        filled = [fill(template, test["fill"], values) for values in itertools.product(*test["fill"].values())]
        compared = test["kind"] == "invariance"
        cases += [Case(text, filled[0]) for text in filled[1:]] if compared else [Case(text) for text in filled]
    return cases


def fill(template: str, names: Iterable[str], values: Iterable[str]) -> str:
    """A template with values for its names, and "an excellent film" for "a excellent film"."""
    return re.sub(r"\ba (?=[aeiou])", "an ", template.format(**dict(zip(names, values, strict=True))))


def typo(text: str) -> str:
    """A text with two neighbouring letters in the middle of its longest word swapped; not of a field's name, as in `premise:`."""
    word = max(re.findall(r"\w+(?![\w:])", text), key=len)
    at = next((i for i in range(len(word) // 2, len(word)) if word[i] != word[i - 1]), len(word) // 2)
    return text.replace(word, word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :], 1)


def contract(text: str, contractions: Mapping[str, str]) -> str:
    """A text with every long form contracted, except at the end of a clause ("that is what it is")."""
    for long, short in contractions.items():
        text = re.sub(rf"\b{long}\b(?= \w)", short, text)
        text = re.sub(rf"\b{long.capitalize()}\b(?= \w)", short.capitalize(), text)
    return text


def behaviour_table(outcomes: Sequence[Outcome]) -> list[str]:
    """The outcomes as lines of a table, each with a text that failed."""
    lines = [f"{'kind':22} {'test':26} {'passed':>9} {'rate':>6}  a failure"]
    for o in outcomes:
        example = o.failures[0] if o.failures else ""
        lines.append(f"{o.kind:22} {o.name:26} {f'{o.passed}/{o.cases}':>9} {o.pass_rate:6.0%}  {example}".rstrip())
    return lines
