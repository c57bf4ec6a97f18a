"""What a run is going to ask, as far as that can be said before any answer: for estimates, and to be shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

from cotd.calibration import Calibration
from cotd.completions import Request, batched
from cotd.errors import CotdError
from cotd.prompts import Prompts
from cotd.reviews import Reviews
from cotd.strategies import (
    Completion,
    Tagged,
    Teacher,
    calibrated_label,
    calibration_reviews,
    explain_request,
    explained_reviews,
    explains,
    fitted_calibration,
    gold_labels,
    label_score,
    score_requests,
    think_request,
    thinks,
)
from cotd.task import Task

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
    teacher: Teacher, reviews: Reviews, task: Task, prompts: Prompts, known: Known = lambda requests: {}
) -> Iterator[Planned]:
    """What a run is going to ask.

    A scoring teacher explains its own labels, which follow from its scores: where `known` has them, so is it here.
    Where it has not, each review's rationale given its gold label is counted, and one for another label as uncertain;
    without gold there is one, for whichever label.
    """
    if teacher.config.strategy == "score_then_explain":
        return planned_scoring(teacher, reviews, task, prompts, known)
    return planned_thinking(teacher, reviews, task, prompts)


def planned_thinking(teacher: Teacher, reviews: Reviews, task: Task, prompts: Prompts) -> Iterator[Planned]:
    train, test, explained = reviews.split("train"), reviews.split("test"), explained_reviews(teacher.config, reviews)
    gold_of = gold_labels(teacher, train)

    def thought(answer: Completion) -> bool:
        return thinks(teacher, prompts, task, answer, label_only=False)

    def label(answer: Completion) -> bool:
        return thinks(teacher, prompts, task, answer, label_only=True)

    for i, text in teacher.shown(pd.concat([test, explained]).drop_duplicates("id")):
        request = think_request(teacher, prompts, text, 0, greedy=True)
        yield Planned("chain of thought of a held-out review", i, request, label)
    for i, text in teacher.shown(train):
        for s in range(teacher.config.samples):
            yield Planned("chain of thought", i, think_request(teacher, prompts, text, s), thought)
            if i in gold_of:
                request = explain_request(teacher, prompts, text, gold_of[i], s, structured=True)
                yield Planned("rationale given the gold label", i, request, lambda answer: explains(teacher, prompts, answer))


def planned_scoring(teacher: Teacher, reviews: Reviews, task: Task, prompts: Prompts, known: Known) -> Iterator[Planned]:
    train, test, explained = reviews.split("train"), reviews.split("test"), explained_reviews(teacher.config, reviews)
    held_out = calibration_reviews(teacher.config, reviews)
    everything = pd.concat([held_out, test, train, explained]).drop_duplicates("id")
    scores: dict[str, float] = {}
    unscored: set[str] = set()  # not asked yet; what is in neither was refused

    def scoring() -> Iterator[tuple[str, Request]]:
        for block in batched(score_requests(teacher, task, prompts, everything), SCORES_AT_ONCE):
            yield from noted(block)

    def noted(block: list[Tagged]) -> Iterator[tuple[str, Request]]:
        answers = known([request for _, request in block])
        for (i,), request in block:
            if (answer := answers.get(request.key)) is None:
                unscored.add(i)
            elif not answer["error"]:
                scores[i] = label_score(answer, task)
            yield i, request

    for i, request in scoring():
        yield Planned("label score", i, request)
    calibration = planned_calibration(teacher, task, held_out, scores, unscored)
    gold_of = gold_labels(teacher, train)

    def rationale(i: str, text: str, label: str, sample: int, certain: bool) -> Planned:
        request = explain_request(teacher, prompts, text, label, sample)
        given = "label" if certain else "label that may turn out to be the teacher's"
        return Planned(f"rationale given a {given}", i, request, lambda answer: explains(teacher, prompts, answer), certain)

    def own(i: str) -> list[str]:
        """The labels that the teacher may give a review, by what is known."""
        if calibration is None or i in unscored:
            return [task.positive, *(label for label in task.labels if label != task.positive)]
        return [calibrated_label(task, calibration, scores[i])[0]] if i in scores else []

    for i, text in teacher.shown(explained):
        for label in own(i)[:1]:
            yield rationale(i, text, label, 0, certain=True)
    for i, text in teacher.shown(train):
        gold, possible = gold_of.get(i), own(i)
        certain = [gold] if gold else possible[:1]
        certain += possible if len(possible) == 1 else []
        uncertain = [label for label in possible if gold and label not in certain]
        for s in range(teacher.config.samples):
            for label in dict.fromkeys([*certain, *uncertain]):
                yield rationale(i, text, label, s, label in certain)


def planned_calibration(
    teacher: Teacher, task: Task, held_out: pd.DataFrame, scores: dict[str, float], unscored: set[str]
) -> Calibration | None:
    """The calibration that a run is going to find, or None where scores that it takes are not known."""
    if not unscored.isdisjoint(held_out["id"]):
        return None
    try:
        return fitted_calibration(teacher.config, task, held_out, scores)
    except CotdError:  # the run says so
        return None
