"""How a teacher is asked: score, then explain (weak teachers), or few-shot chain of thought (strong ones).

A strategy sees neither engine nor store: it is given `ask`, which completes requests, and returns the teacher's output.
Requests are rendered when their turn comes, and texts and rows are on disk: an example takes some 60 bytes of memory.
"""

from __future__ import annotations

import itertools
import sys
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
    explained_examples,
    rationale_rows,
    test_table,
    with_vote_shares,
)
from cotd.teachers.prompts import Prompts
from cotd.teachers.requests import Request, explain_request, score_request, think_request
from cotd.teachers.store import Completion
from cotd.teachers.teacher import Teacher
from cotd.utils.memory import release_memory

# What a strategy gets back with the completion of a request; the example's id comes first.
Tag = tuple[Any, ...]
Tagged = tuple[Tag, Request]
# Whether a completion can be used. One that cannot may be sampled anew (`cotd.teachers.requests.retry_request`).
Usable = Callable[[Tag, Completion], bool]
# Completes requests: ask(requests, what they are in words, usable) yields each tag once, in any order, with a completion
# that has an `error` if it failed. `requests` is a function, as they may be gone through several times.
Ask = Callable[[Callable[[], Iterable[Tagged]], str, Usable], Iterator[tuple[Tag, Completion]]]
# The `finish_reason` of a request that was not made, because the budget was reached.
NOT_ASKED = "not asked"


def score_then_explain(teacher: Teacher, examples: Examples, task: Task, prompts: Prompts, ask: Ask) -> TeacherOutput:
    """Scores the label words, calibrates the scores on validation examples, then asks for a rationale given the label.

    A rationale given the teacher's own label and one given an equal gold label are the same request, and paid for once.
    """
    train, test = examples.rows.split("train"), examples.rows.split("test")
    held_out, explained = calibration_examples(teacher.config, examples), explained_examples(teacher.config, examples)
    parts = scored_examples(held_out, test, train, explained)
    positions, size = positions_of(parts), sum(map(len, parts))
    scores, prompt_tokens = np.full(size, np.nan), np.zeros(size, dtype=np.int32)
    errors: list[str | None] = [None] * size
    unasked = np.zeros(size, dtype=bool)
    for (_, position), completion in ask(
        lambda: score_requests(teacher, task, prompts, parts), "label scores", lambda tag, completion: True
    ):
        if completion["error"]:
            errors[position] = sys.intern(completion["error"])  # of millions of equal ones, one is in memory
            unasked[position] = completion["finish_reason"] == NOT_ASKED
        else:
            scores[position], prompt_tokens[position] = label_score(completion, task), completion["prompt_tokens"]
    release_memory()

    scored = ~np.isnan(scores)
    calibration = calibrate_on(held_out, scores, teacher.config, task)

    def own_label(position: int) -> tuple[str, float]:
        return calibration.label(float(scores[position]), task)

    def own_labels(position: int) -> list[str]:
        return [own_label(position)[0]] if scored[position] else []

    rows, rationales = annotation_rows(teacher.config, examples), rationale_rows(explained)
    origin = origin_of(teacher, prompts)
    for (example_id, position, sample, label, kinds), completion in ask(
        lambda: rationale_requests(teacher, prompts, train, explained, positions, own_labels),
        "rationales",
        lambda tag, completion: explains(teacher, prompts, completion),
    ):
        rationale = written_rationale(teacher, prompts, completion)
        if not kinds and completion["finish_reason"] != NOT_ASKED:
            rationales.add({"example_id": example_id, "rationale": usable_rationale(rationale, completion)})
        for by_gold in kinds:  # one completion serves both kinds if the labels are equal
            probability = None if by_gold else own_label(position)[1]
            scoring_tokens = 0 if by_gold or sample else int(prompt_tokens[position])
            rows.add(
                annotation_row(example_id, sample, by_gold, label, probability, rationale, completion, origin, scoring_tokens)
            )
    for position, example_id in zip(positions[train.numbers], train.decode_ids(), strict=True):
        if not scored[position]:
            rows.add(annotation_row(example_id, 0, False, None, None, "", None, origin, error=errors[position]))
    for position, example_id in zip(positions[explained.numbers], explained.decode_ids(), strict=True):
        if not scored[position] and not unasked[position]:
            rationales.add({"example_id": example_id, "rationale": ""})
    labels, probabilities = np.full(len(test), None, dtype=object), np.full(len(test), np.nan)
    for row, position in enumerate(positions[test.numbers].tolist()):
        if scored[position]:
            labels[row], probabilities[row] = own_label(position)
    measured = test_table(test, labels, probabilities, ~unasked[positions[test.numbers]])
    return TeacherOutput(rows, measured, calibration.to_dict(), rationales)


def chain_of_thought(teacher: Teacher, examples: Examples, task: Task, prompts: Prompts, ask: Ask) -> TeacherOutput:
    """Few-shot chain of thought with structured output; for gold-conditioned rationales, `explain` given gold.

    The teacher's labels are taken as they are: `label_probability` is the share of samples that agree.
    """
    train, test = examples.rows.split("train"), examples.rows.split("test")
    held_out, explained = thought_parts(teacher.config, examples), explained_examples(teacher.config, examples)
    rows, origin = annotation_rows(teacher.config, examples, with_vote_shares), origin_of(teacher, prompts)
    rationales = rationale_rows(explained)
    is_explained = np.concatenate([np.isin(part.numbers, explained.numbers) for part in held_out])
    predicted, asked = np.full(len(is_explained), None, dtype=object), np.ones(len(is_explained), dtype=bool)
    for (example_id, kind, sample, position), completion in ask(
        lambda: thought_requests(teacher, prompts, held_out, train),
        "chains of thought",
        lambda tag, completion: thought_usable(teacher, prompts, task, tag, completion),
    ):
        if kind == "explain":
            rationale = written_rationale(teacher, prompts, completion)
            rows.add(annotation_row(example_id, sample, True, train.label(position), None, rationale, completion, origin))
            continue
        label, rationale = parsed(teacher, prompts, task, completion)
        if kind == "think":
            error = None if label or completion["error"] else "no label of the task in the completion"
            rows.add(annotation_row(example_id, sample, False, label, None, rationale, completion, origin, error=error))
        elif completion["finish_reason"] == NOT_ASKED:
            asked[position] = False
        else:
            predicted[position] = label
            if is_explained[position]:
                rationales.add({"example_id": example_id, "rationale": usable_rationale(rationale, completion)})
    measured = test_table(test, predicted[: len(test)], None, asked[: len(test)])
    return TeacherOutput(rows, measured, None, rationales)


STRATEGIES = {"score_then_explain": score_then_explain, "chain_of_thought": chain_of_thought}


def origin_of(teacher: Teacher, prompts: Prompts) -> dict[str, str]:
    """The columns of an annotation that are the same throughout a table."""
    return {"teacher": teacher.name, "revision": teacher.revision, "prompt_hash": prompts.hash}


# --- which requests -------------------------------------------------------------------------------------------------


def calibration_examples(config: TeacherConfig, examples: Examples) -> ExampleTable:
    """The validation examples that the calibration may see.

    Raises:
        CotdError: Platt scaling needs gold labels of both kinds, and the examples lack them.
    """
    held_out = examples.rows.split("validation")
    if config.calibration.method == "platt":
        held_out = held_out.take(held_out.labels != NONE)
        if len(np.unique(held_out.labels[: config.calibration.rows])) < 2:
            raise CotdError(
                "teacher.calibration.method platt needs validation examples with gold labels of both kinds. "
                "Use method: prior, which needs none, or give labels."
            )
    return held_out.take(slice(config.calibration.rows))


def calibrate_on(held_out: ExampleTable, scores: np.ndarray, config: TeacherConfig, task: Task) -> Calibration:
    """The calibration fitted on the first of `scored_examples`, see `calibrate`."""
    return calibrate(config.calibration, scores[: len(held_out)], held_out.labels == task.labels.index(task.positive_label))


def scored_examples(
    held_out: ExampleTable, test: ExampleTable, train: ExampleTable, explained: ExampleTable
) -> list[ExampleTable]:
    """The examples to score, each once, in an order that serves a run that is stopped early: calibration, test and training
    examples, then other held-out examples that are explained."""
    others = ~np.isin(explained.numbers, np.concatenate([held_out.numbers, test.numbers]))
    return [held_out, test, train, explained.take(others)]


def positions_of(parts: Sequence[ExampleTable]) -> np.ndarray:
    """Text number → position of its example in the joined parts: a dictionary by id would take forty times the memory."""
    numbers = np.concatenate([part.numbers for part in parts])
    positions = np.full(len(parts[0].texts), NONE, dtype=np.int32)
    positions[numbers] = np.arange(len(numbers))
    return positions


def gold_labels(teacher: Teacher, train: ExampleTable) -> Iterator[str | None]:
    """Each example's gold label; None if it has none, or no rationale given gold is configured."""
    return (train.label(n) if teacher.config.gold_conditioned else None for n in range(len(train)))


def score_requests(teacher: Teacher, task: Task, prompts: Prompts, parts: Iterable[ExampleTable]) -> Iterator[Tagged]:
    """A label score of each example of the parts; tags are (example id, its position)."""
    for n, (i, text) in enumerate(itertools.chain.from_iterable(map(teacher.shown, parts))):
        yield (i, n), score_request(teacher, task, prompts, text)


def rationale_requests(
    teacher: Teacher,
    prompts: Prompts,
    train: ExampleTable,
    explained: ExampleTable,
    positions: np.ndarray,
    labels: Callable[[int], Sequence[str]],
) -> Iterator[Tagged]:
    """Rationales given the teacher's own label and, of training examples, given gold.

    Args:
        positions: see `positions_of`. labels: an example's position → the teacher's label, or nothing if it has no score; for an
            estimate before the scores are known, all labels that it may turn out to have.

    Yields:
        Requests with the tags (example id, position, sample, label, kinds). `kinds` holds False if the label is the teacher's
        and True if it is gold; it is empty for held-out examples.
    """
    golds = gold_labels(teacher, train)
    for n, (i, text), gold in zip(positions[train.numbers], teacher.shown(train), golds, strict=True):
        teacher_labels = labels(n)
        for sample in range(teacher.config.samples):
            for label in dict.fromkeys([*teacher_labels, gold] if gold else teacher_labels):
                kinds = tuple(by_gold for by_gold in (False, True) if (label == gold if by_gold else label in teacher_labels))
                yield (i, n, sample, label, kinds), explain_request(teacher, prompts, text, label, sample)
    for n, (i, text) in zip(positions[explained.numbers], teacher.shown(explained), strict=True):
        for label in labels(n):
            yield (i, n, 0, label, ()), explain_request(teacher, prompts, text, label, 0)


def thought_parts(config: TeacherConfig, examples: Examples) -> list[ExampleTable]:
    """The held-out examples to think about: test examples, and the others that are explained."""
    test, explained = examples.rows.split("test"), explained_examples(config, examples)
    return [test, explained.take(~np.isin(explained.numbers, test.numbers))]


def thought_requests(
    teacher: Teacher, prompts: Prompts, held_out: Sequence[ExampleTable], train: ExampleTable
) -> Iterator[Tagged]:
    """Chains of thought, and rationales given gold.

    Tags are (example id, kind, sample, position); the kind is "test", "think" or "explain". Test examples come first, so that a
    run that reaches its budget is measured.
    """
    for n, (i, text) in enumerate(itertools.chain.from_iterable(map(teacher.shown, held_out))):
        yield (i, "test", 0, n), think_request(teacher, prompts, text, 0, greedy=True)
    for n, ((i, text), gold) in enumerate(zip(teacher.shown(train), gold_labels(teacher, train), strict=True)):
        for sample in range(teacher.config.samples):
            yield (i, "think", sample, n), think_request(teacher, prompts, text, sample)
            if gold:
                yield (i, "explain", sample, n), explain_request(teacher, prompts, text, gold, sample, structured=True)


# --- what completions mean --------------------------------------------------------------------------------------------


def label_score(completion: Completion, task: Task) -> float:
    """log P(positive word) - log P(the other word) of a completion of `score_request`."""
    positive = task.labels.index(task.positive_label)
    logprobs = completion["label_logprobs"]
    return float(logprobs[positive] - logprobs[1 - positive])


def parsed(teacher: Teacher, prompts: Prompts, task: Task, completion: Completion) -> tuple[str | None, str]:
    """(label, rationale) of a chain of thought; (None, "") of a failed one."""
    if completion["error"]:
        return None, ""
    parse = prompts.parse_json if teacher.writes_json else prompts.parse_chain_of_thought
    return parse(completion["text"], task)


def written_rationale(teacher: Teacher, prompts: Prompts, completion: Completion) -> str:
    """The rationale of a completion of `explain_request`."""
    if completion["error"]:
        return ""
    text = completion["text"] or ""
    return prompts.parse_json(text)[1] if teacher.writes_json else text


def usable_rationale(rationale: str, completion: Completion) -> str:
    """The rationale as students read it, or "" if an annotation with it would be quarantined."""
    if completion["error"]:
        return ""
    rationale, problem = tidy_rationale(rationale, completion["finish_reason"])
    return "" if problem else rationale


def explains(teacher: Teacher, prompts: Prompts, completion: Completion) -> bool:
    """Whether a completion of `explain_request` is a rationale that students can learn from."""
    return bool(usable_rationale(written_rationale(teacher, prompts, completion), completion))


def thought_usable(teacher: Teacher, prompts: Prompts, task: Task, tag: Tag, completion: Completion) -> bool:
    """Whether a completion of one of `thought_requests` can be used; of a test example a label is enough."""
    if tag[1] == "explain":
        return explains(teacher, prompts, completion)
    label, rationale = parsed(teacher, prompts, task, completion)
    return label is not None and (tag[1] == "test" or bool(usable_rationale(rationale, completion)))
