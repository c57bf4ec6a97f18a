"""What a run is going to ask, as far as that can be said before any answer: for estimates, and to be shown."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cotd.data.examples import Examples
from cotd.data.table import ExampleTable
from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.teachers.calibration import Calibration
from cotd.teachers.output import explained_reviews
from cotd.teachers.prompts import Prompts
from cotd.teachers.requests import Request, Teacher, explain_request, think_request
from cotd.teachers.store import Completion
from cotd.teachers.strategies import (
    calibrated_label,
    calibration_reviews,
    explains,
    fitted_calibration,
    label_score,
    places_of,
    score_requests,
    scored_reviews,
    thinks,
    wanted_gold,
)
from cotd.utils.iteration import batched

SCORES_AT_ONCE = 4096
# The answers that count as known, by key.
Known = Callable[[list[Request]], dict[str, Completion]]


@dataclass(frozen=True)
class Planned:
    """A request that a run is going to make, or needs the answer of.

    Attributes:
        what: it is, in words. usable: whether an answer can be used. certain: False where it turns out during the run
            whether it is wanted.
    """

    what: str
    review_id: str
    request: Request
    usable: Callable[[Completion], bool] = lambda answer: True
    certain: bool = True


def planned_requests(
    teacher: Teacher, reviews: Examples, task: Task, prompts: Prompts, known: Known = lambda requests: {}
) -> Iterator[Planned]:
    """What a run is going to ask.

    A scoring teacher explains its own labels, which follow from its scores: where `known` has them, so is it here.
    Where it has not, each review's rationale given its gold label is counted, and one for another label as uncertain;
    without gold there is one, for whichever label.
    """
    if teacher.config.strategy == "score_then_explain":
        return planned_scoring(teacher, reviews, task, prompts, known)
    return planned_thinking(teacher, reviews, task, prompts)


def planned_thinking(teacher: Teacher, reviews: Examples, task: Task, prompts: Prompts) -> Iterator[Planned]:
    train, test = reviews.rows.split("train"), reviews.rows.split("test")
    explained = explained_reviews(teacher.config, reviews)

    def thought(answer: Completion) -> bool:
        return thinks(teacher, prompts, task, answer, label_only=False)

    def label(answer: Completion) -> bool:
        return thinks(teacher, prompts, task, answer, label_only=True)

    others = explained.take(~np.isin(explained.numbers, test.numbers))
    for i, text in itertools.chain(teacher.shown(test), teacher.shown(others)):
        request = think_request(teacher, prompts, text, 0, greedy=True)
        yield Planned("chain of thought of a held-out review", i, request, label)
    for (i, text), gold in zip(teacher.shown(train), wanted_gold(teacher, train), strict=True):
        for s in range(teacher.config.samples):
            yield Planned("chain of thought", i, think_request(teacher, prompts, text, s), thought)
            if gold:
                request = explain_request(teacher, prompts, text, gold, s, structured=True)
                yield Planned("rationale given the gold label", i, request, lambda answer: explains(teacher, prompts, answer))


def planned_scoring(teacher: Teacher, reviews: Examples, task: Task, prompts: Prompts, known: Known) -> Iterator[Planned]:
    train, test = reviews.rows.split("train"), reviews.rows.split("test")
    held_out, explained = calibration_reviews(teacher.config, reviews), explained_reviews(teacher.config, reviews)
    parts = scored_reviews(held_out, test, train, explained)
    place = places_of(parts)  # as in score_then_explain
    scores = np.full(sum(map(len, parts)), np.nan)
    unscored = np.zeros(len(scores), dtype=bool)  # not asked yet; what is neither scored nor this was refused

    for block in batched(score_requests(teacher, task, prompts, parts), SCORES_AT_ONCE):
        answers = known([request for _, request in block])
        for (i, n), request in block:
            if (answer := answers.get(request.key)) is None:
                unscored[n] = True
            elif not answer["error"]:
                scores[n] = label_score(answer, task)
            yield Planned("label score", i, request)
    calibration = planned_calibration(teacher, task, held_out, scores[: len(held_out)], unscored[: len(held_out)])

    def rationale(i: str, text: str, label: str, sample: int, certain: bool) -> Planned:
        request = explain_request(teacher, prompts, text, label, sample)
        given = "label" if certain else "label that may turn out to be the teacher's"
        return Planned(f"rationale given a {given}", i, request, lambda answer: explains(teacher, prompts, answer), certain)

    def own(n: int) -> list[str]:
        """The labels that the teacher may give a review, by what is known."""
        if calibration is None or unscored[n]:
            return [task.positive, *(label for label in task.labels if label != task.positive)]
        return [] if np.isnan(scores[n]) else [calibrated_label(task, calibration, scores[n])[0]]

    for n, (i, text) in zip(place[explained.numbers], teacher.shown(explained), strict=True):
        for label in own(n)[:1]:
            yield rationale(i, text, label, 0, certain=True)
    for n, (i, text), gold in zip(place[train.numbers], teacher.shown(train), wanted_gold(teacher, train), strict=True):
        possible = own(n)
        certain = [gold] if gold else possible[:1]
        certain += possible if len(possible) == 1 else []
        uncertain = [label for label in possible if gold and label not in certain]
        for s in range(teacher.config.samples):
            for label in dict.fromkeys([*certain, *uncertain]):
                yield rationale(i, text, label, s, label in certain)


def planned_calibration(
    teacher: Teacher, task: Task, held_out: ExampleTable, scores: np.ndarray, unscored: np.ndarray
) -> Calibration | None:
    """The calibration that a run is going to find, or None where scores that it takes are not known."""
    if unscored.any():
        return None
    try:
        return fitted_calibration(teacher.config, task, held_out, scores)
    except CotdError:  # the run says so
        return None
