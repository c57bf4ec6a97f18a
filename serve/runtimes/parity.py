"""The check that a runtime computes what its student does, made at every load and export."""

from __future__ import annotations

import math

from cotd.students.student import Prediction, Student
from cotd.tasks.base import Task
from serve.runtimes.base import Runtime, Unfit

# Short and long, plain and odd: lengths that share a batch, a text that is truncated, characters unknown to the tokenizer.
PROBES = [
    "A warm and funny film.",
    "Dull and lifeless: I checked my watch every five minutes.",
    "Not bad at all.",
    "The jokes fall flat, but the music is lovely and I would see it again.",
    "fine",
    "!!!",
    "¿Qué película más rara? 这部电影很好。 🎬",
    "It stopped working after a week, and nobody answered when I wrote to ask for my money back. " * 40,
]
# The options of each probe, if the task needs them: two and more, of one word and of several.
CHOICES = [
    ["yes", "no"],
    ["a bank", "a library", "a department store", "a mall", "New York"],
    ["good", "bad", "neither of the two"],
]


# How far a probability may be from the student's: by rounding alone, or by numbers of 16 or 8 bits.
EXACT, REDUCED = 1e-3, 0.05


def probe_choices(task: Task) -> list[list[str]] | None:
    """The options of each probe, or None if the task needs none."""
    return [CHOICES[i % len(CHOICES)] for i in range(len(PROBES))] if task.needs_choices else None


def check_parity(runtime: Runtime, student: Student, tolerance: float) -> None:
    """Raises Unfit unless the runtime, given all probes at once, predicts what the student does for each alone.

    Probabilities must be within `tolerance`, and labels equal unless the student's two likeliest are that close to each other.
    Free answers must be equal, unless the tolerance is infinite.
    """
    problems = []
    choices = probe_choices(student.task)
    for i, (text, actual) in enumerate(zip(PROBES, runtime.predict(PROBES, choices), strict=True)):
        expected = student.predict([text], choices=choices and [choices[i]])[0]
        if problem := difference(actual, expected, tolerance):
            problems.append(f"'{text if len(text) < 60 else text[:57] + '…'}': {problem}")
    if problems:
        raise Unfit(f"the student does not pass its check ({len(problems)} of {len(PROBES)} probes): {problems[0]}")


def difference(actual: Prediction, expected: Prediction, tolerance: float) -> str | None:
    """What is wrong with a runtime's prediction, or None."""
    certain = tolerance < math.inf
    if expected.probabilities is not None:
        probabilities = actual.probabilities or {}
        first, second = sorted(expected.probabilities.values(), reverse=True)[:2]
        certain = first - second > tolerance
        distance = max(abs(probabilities[label] - p) for label, p in expected.probabilities.items())
        if not all(math.isfinite(p) for p in probabilities.values()):
            return "a probability is not a number"
        if distance > tolerance:
            return f"a probability differs by {distance:.4f}, the tolerance is {tolerance}"
    if actual.label != expected.label and certain:
        return f"{actual.label} instead of {expected.label}"
    return "truncated by only one of the two" if actual.truncated != expected.truncated else None
