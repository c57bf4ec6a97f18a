"""Behavioural tests of a student, in the spirit of CheckList (Ribeiro et al. 2020): reported, not asserted.

Invariance: a change that means nothing changes no label. Direction: an added verdict moves the probability its way, or
not at all. Minimum functionality: simple sentences have the label that anyone would give them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from cotd.errors import CotdError
from cotd.students.student import Prediction, Student

Kind = Literal["invariance", "direction", "minimum functionality"]
# How far a probability may go against an added verdict: CheckList's tolerance.
TOLERANCE = 0.1

NAMED = (
    "{} gives a wonderful performance from start to finish.",
    "I had hoped for more from {}, and it was a dull evening.",
    "{} told me to see it, and I have not laughed so much in years.",
    "Not even {} could save a script as lazy as this.",
)
NAMES = ("Anna", "Michael", "Priya", "Mohammed", "Wei", "Fatima", "Carlos", "Olga")
REVIEWS = (
    "It is a warm and funny film, and I would see it again tomorrow.",
    "I do not know when I last enjoyed a story as much as this one.",
    "The acting is superb, and the ending does not disappoint.",
    "We are still talking about it; it is simply beautiful.",
    "There is not a dull moment in it, and the music is lovely.",
    "It was not worth the money, and I will not go there again.",
    "The plot does not make sense, and the jokes are not funny.",
    "I could not wait for it to end; it is a tedious mess.",
    "They have not understood the book, and it is painful to watch.",
    "The service was slow, and we did not get what we had ordered.",
)  # fmt: skip
CONTRACTIONS = {
    "do not": "don't", "does not": "doesn't", "did not": "didn't", "is not": "isn't", "are not": "aren't",
    "was not": "wasn't", "could not": "couldn't", "will not": "won't", "have not": "haven't", "it is": "it's",
    "we are": "we're", "there is": "there's",
}  # fmt: skip
NOUNS = ("film", "book", "meal", "hotel", "story")
GOOD = ("good", "wonderful", "excellent", "lovely", "great")
BAD = ("bad", "terrible", "awful", "horrible", "poor")


@dataclass(frozen=True)
class Case:
    """A text, and the one it is made from where the test is a comparison."""

    text: str
    original: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a student did in one test.

    Attributes:
        pass_rate: passed / cases, in [0, 1].
        failures: texts that it failed, at most three.
    """

    kind: Kind
    name: str
    cases: int
    passed: int
    failures: tuple[str, ...]

    @property
    def pass_rate(self) -> float:
        return self.passed / self.cases


def check_behaviour(student: Student, reviews: Sequence[str] = REVIEWS) -> list[Outcome]:
    """Runs every behavioural test on a student of the sentiment task.

    Args:
        reviews: what typos, contractions and verdicts are put into.

    Raises:
        CotdError: the student has another task, or reads rationales.
    """
    task = student.task
    if task.name != "sentiment":
        raise CotdError(f"the behavioural tests are of sentiment, and this student's task is '{task.name}'.")
    (other,) = (label for label in task.labels if label != task.positive)

    def same_label(new: Prediction, old: Prediction | None) -> bool:
        return old is not None and new.label == old.label

    def not_away_from(label: str) -> Callable[[Prediction, Prediction | None], bool]:
        return lambda new, old: old is not None and new.probabilities[label] >= old.probabilities[label] - TOLERANCE

    def has(label: str) -> Callable[[Prediction, Prediction | None], bool]:
        return lambda new, _: new.label == label

    tests: list[tuple[Kind, str, list[Case], Callable[[Prediction, Prediction | None], bool]]] = [
        ("invariance", "another name", renamed(), same_label),
        ("invariance", "a typo", [Case(typo(r), r) for r in reviews], same_label),
        ("invariance", "contractions", [Case(contracted(r), r) for r in reviews if contracted(r) != r], same_label),
        ("direction", '"I hated it." is added', [Case(f"{r} I hated it.", r) for r in reviews], not_away_from(other)),
        ("direction", '"I loved it." is added', [Case(f"{r} I loved it.", r) for r in reviews], not_away_from(task.positive)),
        ("minimum functionality", "plain praise", sentences("This is a {} {}.", GOOD), has(task.positive)),
        ("minimum functionality", "plain complaint", sentences("This is a {} {}.", BAD), has(other)),
        ("minimum functionality", "praise, negated", sentences("This is not a {} {}.", GOOD), has(other)),
        ("minimum functionality", "complaint, negated", sentences("This is not a {} {} at all.", BAD), has(task.positive)),
    ]
    texts = list(dict.fromkeys(t for _, _, cases, _ in tests for case in cases for t in (case.text, case.original) if t))
    said = dict(zip(texts, student.predict(texts), strict=True))
    outcomes = []
    for kind, name, cases, passes in tests:
        failed = [c.text for c in cases if not passes(said[c.text], said[c.original] if c.original else None)]
        outcomes.append(Outcome(kind, name, len(cases), len(cases) - len(failed), tuple(failed[:3])))
    return outcomes


def renamed() -> list[Case]:
    """Each sentence with every name, against the same with the first."""
    return [Case(t.format(name), t.format(NAMES[0])) for t, name in itertools.product(NAMED, NAMES[1:])]


def sentences(template: str, adjectives: Sequence[str]) -> list[Case]:
    return [Case(articled(template.format(a, n))) for a, n in itertools.product(adjectives, NOUNS)]


def articled(text: str) -> str:
    """ "an excellent film" for "a excellent film"."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def typo(text: str) -> str:
    """A text with two neighbouring letters in the middle of its longest word swapped."""
    word = max(re.findall(r"\w+", text), key=len)
    at = next((i for i in range(len(word) // 2, len(word)) if word[i] != word[i - 1]), len(word) // 2)
    return text.replace(word, word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :], 1)


def contracted(text: str) -> str:
    """A text with what can be contracted contracted, but for the end of a clause ("that is what it is")."""
    for long, short in CONTRACTIONS.items():
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
