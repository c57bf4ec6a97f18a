"""How a teacher is asked: score, then explain (weak teachers), or few-shot chain of thought (strong ones).

A strategy sees neither engine nor store: it is given `ask`, which answers requests, and returns the teacher's output.
Requests are rendered when they are needed; texts and rows are on disk, so that of a review some 60 bytes are in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cotd.data.examples import Examples
from cotd.data.table import NONE, ExampleTable
from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.teachers.annotations import annotation_row, tidy_rationale
from cotd.teachers.calibration import Calibration, calibrate
from cotd.teachers.config import TeacherConfig
from cotd.teachers.output import (
    TeacherOutput,
    annotation_rows,
    explained_reviews,
    rationale_rows,
    test_table,
    with_vote_shares,
)
from cotd.teachers.prompts import Prompts
from cotd.teachers.requests import Request, explain_request, score_request, think_request
from cotd.teachers.store import Completion
from cotd.teachers.teacher import Teacher
from cotd.utils.memory import release_memory

# What a strategy wants back with the answer to a request; the review's id is its first.
Tag = tuple[Any, ...]
Tagged = tuple[Tag, Request]
# Whether an answer that came is one that can be used.
Usable = Callable[[Tag, Completion], bool]
# Answers requests, each once, in any order, failures with their `error`. It may go through them more than once, so it
# is given a function that begins anew; a request is rendered when its turn comes. Also given: what they are, in words,
# and which answers can be used: the others may be asked for again, as `cotd.teachers.requests.retry_request`.
Ask = Callable[[Callable[[], Iterable[Tagged]], str, Usable], Iterator[tuple[Tag, Completion]]]
# The `finish_reason` of a request that was not made, because the budget was reached.
NOT_ASKED = "not asked"


class Failures:
    """Why requests failed, by place: four bytes each, and each reason once."""

    def __init__(self, places: int):
        self._numbers = np.full(places, NONE, dtype=np.int32)
        self._reasons: dict[tuple[str, str | None], int] = {}
        self._answers: list[Completion] = []  # one of each reason

    def __setitem__(self, place: int, answer: Completion) -> None:
        reason = answer["error"], answer["finish_reason"]
        if reason not in self._reasons:
            self._reasons[reason] = len(self._answers)
            self._answers.append({"error": answer["error"], "finish_reason": answer["finish_reason"]})
        self._numbers[place] = self._reasons[reason]

    def get(self, place: int) -> Completion | None:
        """What is left of a failed answer: its error and its finish_reason."""
        return None if self._numbers[place] == NONE else self._answers[self._numbers[place]]

    def not_asked(self) -> np.ndarray:
        """(places,) where no request was made."""
        reasons = [n for (_, finish_reason), n in self._reasons.items() if finish_reason == NOT_ASKED]
        return np.isin(self._numbers, reasons)


def score_then_explain(teacher: Teacher, reviews: Examples, task: Task, prompts: Prompts, ask: Ask) -> TeacherOutput:
    """Scores the label words, calibrates the scores on validation reviews, then asks for a rationale given the label.

    A rationale given the teacher's own label and one given an equal gold label are the same request, and paid once.
    """
    train, test = reviews.rows.split("train"), reviews.rows.split("test")
    held_out, explained = calibration_reviews(teacher.config, reviews), explained_reviews(teacher.config, reviews)
    parts = scored_reviews(held_out, test, train, explained)
    place, size = places_of(parts), sum(map(len, parts))
    scores, prompt_tokens, failures = np.full(size, np.nan), np.zeros(size, dtype=np.int32), Failures(size)
    for (_, n), answer in ask(lambda: score_requests(teacher, task, prompts, parts), "label scores", lambda tag, answer: True):
        if answer["error"]:
            failures[n] = answer
        else:
            scores[n], prompt_tokens[n] = label_score(answer, task), answer["prompt_tokens"]
    release_memory()

    scored = ~np.isnan(scores)
    # The calibration reviews are the first part.
    calibration = fitted_calibration(teacher.config, task, held_out, scores[: len(held_out)])

    def own(n: int) -> tuple[str, float]:
        return calibrated_label(task, calibration, scores[n])

    of_train, of_explained = place[train.numbers], place[explained.numbers]

    def explaining() -> Iterator[Tagged]:
        return rationale_requests(teacher, prompts, train, explained, place, lambda n: [own(n)[0]] if scored[n] else [])

    rows, origin = annotation_rows(teacher.config, reviews), origin_of(teacher, prompts)
    rationales, unasked = rationale_rows(explained), failures.not_asked()
    for n, i in zip(of_explained, explained.decode_ids(), strict=True):
        if not scored[n] and not unasked[n]:
            rationales.add({"review_id": i, "rationale": ""})
    for (i, n, sample, label, kinds), answer in ask(
        explaining, "rationales", lambda tag, answer: explains(teacher, prompts, answer)
    ):
        if not kinds and answer["finish_reason"] != NOT_ASKED:
            rationale = usable_rationale(written_rationale(teacher, prompts, answer), answer)
            rationales.add({"review_id": i, "rationale": rationale})
        for by_gold in kinds:
            given = None if by_gold else own(n)[1]
            scoring = 0 if by_gold or sample else int(prompt_tokens[n])
            rationale = written_rationale(teacher, prompts, answer)
            rows.add(annotation_row(i, sample, by_gold, label, given, rationale, answer, origin, scoring))
    for n, i in zip(of_train, train.decode_ids(), strict=True):
        if not scored[n]:
            rows.add(annotation_row(i, 0, False, None, None, "", failures.get(n), origin))
    labels, probabilities = np.full(len(test), None, dtype=object), np.full(len(test), np.nan)
    of_test = place[test.numbers]
    for k in np.flatnonzero(scored[of_test]):
        labels[k], probabilities[k] = own(of_test[k])
    return TeacherOutput(rows, test_table(test, labels, probabilities, ~unasked[of_test]), calibration.to_dict(), rationales)


def chain_of_thought(teacher: Teacher, reviews: Examples, task: Task, prompts: Prompts, ask: Ask) -> TeacherOutput:
    """Few-shot chain of thought with structured output; for gold-conditioned rationales, `explain` given gold.

    The teacher's labels are taken as they come: `label_probability` is the share of samples that agree.
    """
    train, test = reviews.rows.split("train"), reviews.rows.split("test")
    held_out, explained = thought_parts(teacher.config, reviews), explained_reviews(teacher.config, reviews)
    rows, origin = annotation_rows(teacher.config, reviews, with_vote_shares), origin_of(teacher, prompts)
    rationales = rationale_rows(explained)
    wanted = np.concatenate([np.isin(part.numbers, explained.numbers) for part in held_out])
    said, asked = np.full(len(wanted), None, dtype=object), np.ones(len(wanted), dtype=bool)
    for (i, kind, s, n), answer in ask(
        lambda: thought_requests(teacher, prompts, held_out, train),
        "chains of thought",
        lambda tag, answer: thought_usable(teacher, prompts, task, tag, answer),
    ):
        if kind == "explain":
            rationale = written_rationale(teacher, prompts, answer)
            rows.add(annotation_row(i, s, True, train.label(n), None, rationale, answer, origin))
            continue
        label, rationale = parsed(teacher, prompts, task, answer)
        if kind == "think":
            error = None if label or answer["error"] else "no label of the task in the answer"
            rows.add(annotation_row(i, s, False, label, None, rationale, answer, origin, error=error))
        elif answer["finish_reason"] == NOT_ASKED:
            asked[n] = False
        else:
            said[n] = label
            if wanted[n]:
                rationales.add({"review_id": i, "rationale": usable_rationale(rationale, answer)})
    return TeacherOutput(rows, test_table(test, said[: len(test)], None, asked[: len(test)]), None, rationales)


def parsed(teacher: Teacher, prompts: Prompts, task: Task, answer: Completion) -> tuple[str | None, str]:
    """(label, rationale) of a chain of thought; (None, "") of a failed one."""
    if answer["error"]:
        return None, ""
    parse = prompts.parse_json if teacher.writes_json else prompts.parse_chain_of_thought
    return parse(answer["text"], task)


def written_rationale(teacher: Teacher, prompts: Prompts, answer: Completion) -> str:
    """The rationale of an answer to `explain_request`."""
    if answer["error"]:
        return ""
    text = answer["text"] or ""
    return prompts.parse_json(text)[1] if teacher.writes_json else text


def usable_rationale(rationale: str, answer: Completion) -> str:
    """A rationale that a student may read, or "" where an annotation of it would be quarantined."""
    if answer["error"]:
        return ""
    rationale, problem = tidy_rationale(rationale, answer["finish_reason"])
    return "" if problem else rationale


def explains(teacher: Teacher, prompts: Prompts, answer: Completion) -> bool:
    """Whether an answer to `explain_request` is a rationale that students may learn from."""
    return bool(usable_rationale(written_rationale(teacher, prompts, answer), answer))


def thinks(teacher: Teacher, prompts: Prompts, task: Task, answer: Completion, label_only: bool) -> bool:
    """Whether an answer to `think_request` has a label and, unless only that is wanted, such a rationale."""
    label, rationale = parsed(teacher, prompts, task, answer)
    return label is not None and (label_only or bool(usable_rationale(rationale, answer)))


STRATEGIES = {"score_then_explain": score_then_explain, "chain_of_thought": chain_of_thought}


def calibration_reviews(config: TeacherConfig, reviews: Examples) -> ExampleTable:
    """The validation reviews that the calibration may see.

    Raises:
        CotdError: Platt scaling was asked for and there is no gold of both labels.
    """
    held_out = reviews.rows.split("validation")
    if config.calibration.method == "platt":
        held_out = held_out.take(held_out.labels != NONE)
        if len(np.unique(held_out.labels[: config.calibration.rows])) < 2:
            raise CotdError(
                "teacher.calibration.method platt needs validation reviews with gold labels of both kinds. "
                "Use method: prior, which needs none, or give labels."
            )
    return held_out.take(slice(config.calibration.rows))


def wanted_gold(teacher: Teacher, train: ExampleTable) -> Iterator[str | None]:
    """Each review's gold label, None where no rationale given gold is wanted."""
    return (train.label(n) if teacher.config.gold_conditioned else None for n in range(len(train)))


def scored_reviews(
    held_out: ExampleTable, test: ExampleTable, train: ExampleTable, explained: ExampleTable
) -> list[ExampleTable]:
    """What is scored, in this order, each review once: calibration rows, which a run that is stopped early then has; test
    reviews; training reviews; other held-out reviews that are explained."""
    others = ~np.isin(explained.numbers, np.concatenate([held_out.numbers, test.numbers]))
    return [held_out, test, train, explained.take(others)]


def places_of(parts: Sequence[ExampleTable]) -> np.ndarray:
    """Of each text by its number, the place of its review among the parts: dictionaries by id would take forty times as much."""
    numbers = np.concatenate([part.numbers for part in parts])
    places = np.full(len(parts[0].texts), NONE, dtype=np.int32)
    places[numbers] = np.arange(len(numbers))
    return places


def score_requests(teacher: Teacher, task: Task, prompts: Prompts, parts: Iterable[ExampleTable]) -> Iterator[Tagged]:
    """A label score of each review of the parts; tags are (review id, its place)."""
    reviews = itertools.chain.from_iterable(map(teacher.shown, parts))
    for n, (i, text) in enumerate(reviews):
        yield (i, n), score_request(teacher, task, prompts, text)


def rationale_requests(
    teacher: Teacher,
    prompts: Prompts,
    train: ExampleTable,
    explained: ExampleTable,
    place: np.ndarray,
    labels: Callable[[int], Sequence[str]],
) -> Iterator[Tagged]:
    """Rationales given the teacher's own label and, of training reviews, given gold.

    Args:
        place: see `places_of`. labels: a review's place → the teacher's label, none where it has no score. Before the scores
            are known, for an estimate, all labels that it may turn out to have.

    Yields:
        Requests with the tags (review id, place, sample, label, kinds). `kinds` holds False where the label is the teacher's
        and True where it is gold; it is empty of held-out reviews.
    """
    for n, (i, text), gold in zip(place[train.numbers], teacher.shown(train), wanted_gold(teacher, train), strict=True):
        own = labels(n)
        for sample in range(teacher.config.samples):
            for label in dict.fromkeys([*own, gold] if gold else own):
                kinds = tuple(by_gold for by_gold in (False, True) if (label == gold if by_gold else label in own))
                yield (i, n, sample, label, kinds), explain_request(teacher, prompts, text, label, sample)
    for n, (i, text) in zip(place[explained.numbers], teacher.shown(explained), strict=True):
        for label in labels(n):
            yield (i, n, 0, label, ()), explain_request(teacher, prompts, text, label, 0)


def thought_parts(config: TeacherConfig, reviews: Examples) -> list[ExampleTable]:
    """The held-out reviews to think about: test reviews, and the others that are explained."""
    test, explained = reviews.rows.split("test"), explained_reviews(config, reviews)
    return [test, explained.take(~np.isin(explained.numbers, test.numbers))]


def thought_requests(
    teacher: Teacher, prompts: Prompts, held_out: Sequence[ExampleTable], train: ExampleTable
) -> Iterator[Tagged]:
    """Chains of thought, and rationales given gold; tags are (review id, kind, sample, place), the kind "test", "think" or
    "explain"."""
    # The test reviews go first: what a run that reaches its budget has made is then measured.
    for n, (i, text) in enumerate(itertools.chain.from_iterable(map(teacher.shown, held_out))):
        yield (i, "test", 0, n), think_request(teacher, prompts, text, 0, greedy=True)
    for n, ((i, text), gold) in enumerate(zip(teacher.shown(train), wanted_gold(teacher, train), strict=True)):
        for sample in range(teacher.config.samples):
            yield (i, "think", sample, n), think_request(teacher, prompts, text, sample)
            if gold:
                yield (i, "explain", sample, n), explain_request(teacher, prompts, text, gold, sample, structured=True)


def thought_usable(teacher: Teacher, prompts: Prompts, task: Task, tag: Tag, answer: Completion) -> bool:
    """Whether an answer to one of `thought_requests` can be used."""
    if tag[1] == "explain":
        return explains(teacher, prompts, answer)
    return thinks(teacher, prompts, task, answer, label_only=tag[1] == "test")


def label_score(completion: Completion, task: Task) -> float:
    """log P(positive word) - log P(the other word) of a scoring request's answer."""
    positive = task.labels.index(task.positive)
    logprobs = completion["label_logprobs"]
    return float(logprobs[positive] - logprobs[1 - positive])


def fitted_calibration(config: TeacherConfig, task: Task, held_out: ExampleTable, scores: np.ndarray) -> Calibration:
    """What makes labels of scores, fitted on those of the calibration reviews.

    Args:
        scores: of each of `held_out`, NaN where the teacher gave none.

    Raises:
        CotdError: there are none, or they are of reviews of one label only.
    """
    known = ~np.isnan(scores)
    if not known.any():
        raise CotdError("the teacher scored none of the validation reviews, so its labels cannot be calibrated.")
    settings = config.calibration
    gold = (held_out.labels == task.labels.index(task.positive))[known] if settings.method == "platt" else None
    if gold is not None and len(set(gold)) < 2:
        raise CotdError("the teacher scored validation reviews of one label only, so its labels cannot be calibrated.")
    return calibrate(settings.method, scores[known], gold, settings.prior)


def calibrated_label(task: Task, calibration: Calibration, score: np.float64) -> tuple[str, float]:
    """(label, its probability) for a score."""
    p_positive = float(calibration.probability(np.asarray(score)))
    other = next(label for label in task.labels if label != task.positive)
    return (task.positive, p_positive) if p_positive >= 0.5 else (other, 1 - p_positive)


def origin_of(teacher: Teacher, prompts: Prompts) -> dict[str, str]:
    return {"teacher": teacher.name, "revision": teacher.revision, "prompt_hash": prompts.hash}
