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
from cotd.teachers.store import Completion, new_completion
from cotd.teachers.teacher import Shown, Teacher
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


def score_then_explain(teacher: Teacher, examples: Examples, prompts: Prompts, ask: Ask) -> TeacherOutput:
    """Scores each example's options, calibrates the scores on validation examples, then asks for a rationale given the label.

    A rationale given the teacher's own label and one given an equal gold label are the same request, and paid for once.
    """
    return explain_scored(ScoredExamples(teacher, examples, prompts), examples, ask)


def explain_scored(scored: ScoredExamples, examples: Examples, ask: Ask) -> TeacherOutput:
    """Scores examples, and then explains them."""
    teacher, prompts = scored.teacher, scored.prompts
    train, test, explained, positions = scored.train, scored.test, scored.explained, scored.positions
    prompt_tokens, unasked = np.zeros(len(scored), dtype=np.int32), np.zeros(len(scored), dtype=bool)
    errors: list[str | None] = [None] * len(scored)
    for (_, position, *which), completion in ask(scored.requests, "label scores", lambda tag, completion: True):
        if completion["error"]:
            errors[position] = sys.intern(completion["error"])  # of millions of equal ones, one is in memory
            unasked[position] = completion["finish_reason"] == NOT_ASKED
        else:
            errors[position] = scored.add(position, completion, *which) or errors[position]
            prompt_tokens[position] += completion["prompt_tokens"]
    release_memory()
    calibration = scored.calibrate()

    rows, rationales = annotation_rows(teacher.config, examples), rationale_rows(explained)
    origin = scored.origin
    for (example_id, position, sample, label, kinds), completion in ask(
        lambda: scored.rationale_requests(scored.labels),
        "rationales",
        lambda tag, completion: explains(teacher, prompts, completion),
    ):
        rationale = written_rationale(teacher, prompts, completion)
        if not kinds and completion["finish_reason"] != NOT_ASKED:
            rationales.add({"example_id": example_id, "rationale": usable_rationale(rationale, completion)})
        for by_gold in kinds:  # one completion serves both kinds if the labels are equal
            probability = None if by_gold else scored.choose(position)[1]
            each = None if by_gold else scored.probabilities(position)
            scoring_tokens = 0 if by_gold or sample else int(prompt_tokens[position])
            rows.add(
                annotation_row(
                    example_id, sample, by_gold, label, probability, rationale, completion, origin, scoring_tokens,
                    probabilities=each,
                )
            )  # fmt: skip
    for position, example_id, choices in zip(positions[train.numbers], train.decode_ids(), train.own_choices(), strict=True):
        if not scored.has_score(position):
            rows.add(annotation_row(example_id, 0, False, None, None, "", None, origin, error=errors[position]))
        elif not scored.explains:
            (label,), scoring_tokens = scored.labels(position, choices), int(prompt_tokens[position])
            probability, each = scored.choose(position)[1], scored.probabilities(position)
            blank = new_completion("", finish_reason="stop", prompt_tokens=0, output_tokens=1)
            rows.add(
                annotation_row(
                    example_id, 0, False, label, probability, None, blank, origin, scoring_tokens, probabilities=each
                )
            )
    for position, example_id in zip(positions[explained.numbers], explained.decode_ids(), strict=True):
        if not scored.has_score(position) and not unasked[position]:
            rationales.add({"example_id": example_id, "rationale": ""})
    labels, probabilities = np.full(len(test), None, dtype=object), np.full(len(test), np.nan)
    for row, (position, choices) in enumerate(zip(positions[test.numbers], test.own_choices(), strict=True)):
        for label in scored.labels(position, choices):
            labels[row], probabilities[row] = label, scored.choose(position)[1]
    measured = test_table(test, labels, probabilities, ~unasked[positions[test.numbers]])
    return TeacherOutput(rows, measured, calibration.to_dict() if calibration else None, rationales)


def chain_of_thought(teacher: Teacher, examples: Examples, prompts: Prompts, ask: Ask) -> TeacherOutput:
    """Few-shot chain of thought with structured output; for gold-conditioned rationales, `explain` given gold.

    The teacher's labels are taken as they are: `label_probability` is the share of samples that agree.
    """
    train, test = examples.rows.split("train"), examples.rows.split("test")
    held_out, explained = thought_parts(teacher.config, examples), explained_examples(teacher.config, examples)
    rows, origin = annotation_rows(teacher.config, examples, with_vote_shares), origin_of(teacher, prompts)
    rationales = rationale_rows(explained)
    is_explained = np.concatenate([np.isin(part.numbers, explained.numbers) for part in held_out])
    predicted, asked = np.full(len(is_explained), None, dtype=object), np.ones(len(is_explained), dtype=bool)
    answered_first = 0
    for tag, completion in ask(
        lambda: thought_requests(teacher, prompts, held_out, train),
        "chains of thought",
        lambda tag, completion: thought_usable(teacher, prompts, tag, completion),
    ):
        example_id, kind, sample, position, choices = tag
        if kind == "explain":
            rationale = written_rationale(teacher, prompts, completion)
            rows.add(annotation_row(example_id, sample, True, train.label(position), None, rationale, completion, origin))
            continue
        label, rationale = parsed(teacher, prompts, choices, completion)
        answered_first += label is not None and teacher.writes_json and prompts.answers_first(completion["text"])
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
    return TeacherOutput(rows, measured, None, rationales, answered_first=answered_first)


STRATEGIES: dict[str, Callable[..., TeacherOutput]] = {
    "score_then_explain": score_then_explain, "chain_of_thought": chain_of_thought,
}  # fmt: skip


def origin_of(teacher: Teacher, prompts: Prompts) -> dict[str, str]:
    """The columns of an annotation that are the same throughout a table."""
    return {"teacher": teacher.name, "revision": teacher.revision, "prompt_hash": prompts.hash}


# --- which requests -------------------------------------------------------------------------------------------------


class ScoredExamples:
    """The examples that `score_then_explain` scores, each once, and their scores: some bytes an example and label.

    Their order serves a run that is stopped early: calibration, test and training examples, then other held-out examples that
    are explained. An example's position is its place in that order.

    A student that is the teacher has a subclass, which says what is asked of it and what its scores mean.

    Attributes:
        positions: text number → position; a dictionary by id would take forty times the memory.
        scores: (N, L) log-probabilities of an example's options, in their order; NaN before they are known, -inf where it has
            fewer options than another.
        explains: whether the teacher is to write rationales.
    """

    def __init__(self, teacher: Teacher, examples: Examples, prompts: Prompts):
        self.teacher, self.prompts, self.task = teacher, prompts, prompts.task
        self.explains = teacher.config.rationales
        self.train, self.test = examples.rows.split("train"), examples.rows.split("test")
        self.held_out = self.calibration_examples(examples)
        self.explained = explained_examples(teacher.config, examples)
        others = ~np.isin(self.explained.numbers, np.concatenate([self.held_out.numbers, self.test.numbers]))
        self.parts = [self.held_out, self.test, self.train, self.explained.take(others)]
        numbers = np.concatenate([part.numbers for part in self.parts])
        self.positions = np.full(len(examples.rows.texts), NONE, dtype=np.int32)
        self.positions[numbers] = np.arange(len(numbers))
        self.scores = np.full((len(numbers), most_options(self.parts, self.task)), np.nan, dtype=np.float32)
        self.calibration: Calibration | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def origin(self) -> dict[str, str]:
        """See `origin_of`."""
        return origin_of(self.teacher, self.prompts)

    def calibration_examples(self, examples: Examples) -> ExampleTable:
        """The validation examples that the calibration may see."""
        return calibration_examples(self.teacher.config, examples, self.task)

    def requests(self) -> Iterator[Tagged]:
        """A score of each example; tags are (example id, position)."""
        for n, shown in enumerate(itertools.chain.from_iterable(map(self.teacher.shown, self.parts))):
            yield (shown.id, n), score_request(self.teacher, self.prompts, shown.text, shown.choices)

    def add(self, position: int, completion: Completion, *which: Any) -> str | None:
        """Keeps the score of a completion of `requests`; returns why it has none.

        Args:
            which: the rest of the request's tag.
        """
        logprobs = completion["label_logprobs"]
        self.scores[position] = -np.inf
        self.scores[position, : len(logprobs)] = logprobs
        return None

    def has_score(self, position: int) -> bool:
        return not np.isnan(self.scores[position, 0])

    def calibrate(self) -> Calibration | None:
        """Fits the calibration on the first of the examples, see `cotd.teachers.calibration.calibrate`."""
        gold = gold_positions(self.held_out, self.task)
        self.calibration = calibrate(self.teacher.config.calibration, self.scores[: len(gold)], gold, self.task)
        return self.calibration

    def choose(self, position: int) -> tuple[int, float | None]:
        """(Which of an example's options is its label, the label's probability), once calibrated."""
        assert self.calibration is not None
        return self.calibration.choose(self.scores[position])

    def probabilities(self, position: int) -> list[float] | None:
        """Of an example's options, once calibrated; 0 for those that another example has beyond its own."""
        assert self.calibration is not None
        return self.calibration.probabilities(self.scores[position][None])[0].tolist()

    def labels(self, position: int, choices: Sequence[str] | None) -> list[str]:
        """An example's label, or nothing if it has no score."""
        options = self.task.options(choices)
        return [options[self.choose(position)[0]]] if options and self.has_score(position) else []

    def labels_to_explain(self, own: Sequence[str], gold: str | None) -> Iterable[str]:
        """The answers that an example is explained with, given its gold label or None, each once."""
        return dict.fromkeys([*own, gold] if gold else own) if self.explains else []

    def explanation(self, shown: Shown, label: str, sample: int) -> Request:
        """Asks for a rationale given an answer."""
        return explain_request(self.teacher, self.prompts, shown.text, label, sample, shown.choices)

    def rationale_requests(self, labels: Callable[[int, Sequence[str] | None], Sequence[str]]) -> Iterator[Tagged]:
        """Rationales given the teacher's own label and, of training examples, given gold.

        Args:
            labels: an example's position and options → the teacher's label, or nothing if it has no score; for an estimate
                before the scores are known, all labels that it may turn out to have.

        Yields:
            Requests with the tags (example id, position, sample, label, kinds). `kinds` holds False if the label is the
            teacher's and True if it is gold; it is empty for held-out examples.
        """
        teacher, train, explained = self.teacher, self.train, self.explained
        golds = gold_labels(teacher, train)
        for n, shown, gold in zip(self.positions[train.numbers], teacher.shown(train), golds, strict=True):
            own = labels(n, shown.choices)
            for sample in range(teacher.config.samples):
                for label in self.labels_to_explain(own, gold):
                    kinds = tuple(by_gold for by_gold in (False, True) if (label == gold if by_gold else label in own))
                    yield (shown.id, n, sample, label, kinds), self.explanation(shown, label, sample)
        for n, shown in zip(self.positions[explained.numbers], teacher.shown(explained), strict=True):
            for label in labels(n, shown.choices):
                yield (shown.id, n, 0, label, ()), self.explanation(shown, label, 0)


def calibration_examples(config: TeacherConfig, examples: Examples, task: Task) -> ExampleTable:
    """The validation examples that the calibration may see.

    Raises:
        CotdError: Platt scaling needs gold labels of at least two kinds, and the examples lack them.
    """
    held_out = examples.rows.split("validation")
    if config.calibration.method != "platt":
        return held_out.take(slice(config.calibration.rows))
    held_out = held_out.take(held_out.labels != NONE).take(slice(config.calibration.rows))
    if len(np.unique(gold_positions(held_out, task))) < 2:
        raise CotdError(
            "teacher.calibration.method platt needs validation examples with gold labels of at least two kinds. "
            "Use method: prior, which needs none, or give labels."
        )
    return held_out


def gold_positions(table: ExampleTable, task: Task) -> np.ndarray:
    """(N,) the position of each example's gold label among its options, or NONE."""
    if task.labels:
        return table.labels
    options = zip(table.label_names(), table.own_choices(), strict=True)
    return np.array([NONE if label is None or not own else own.index(label) for label, own in options], dtype=np.int32)


def most_options(parts: Iterable[ExampleTable], task: Task) -> int:
    """How many options the example with the most has."""
    if task.labels:
        return len(task.labels)
    return max((len(own) for part in parts for own in part.own_choices() if own), default=0)


def gold_labels(teacher: Teacher, train: ExampleTable) -> Iterator[str | None]:
    """Each example's gold label; None if it has none, or no rationale given gold is configured."""
    return (train.label(n) if teacher.config.gold_conditioned else None for n in range(len(train)))


def thought_parts(config: TeacherConfig, examples: Examples) -> list[ExampleTable]:
    """The held-out examples to think about: test examples, and the others that are explained."""
    test, explained = examples.rows.split("test"), explained_examples(config, examples)
    return [test, explained.take(~np.isin(explained.numbers, test.numbers))]


def thought_requests(
    teacher: Teacher, prompts: Prompts, held_out: Sequence[ExampleTable], train: ExampleTable
) -> Iterator[Tagged]:
    """Chains of thought, and rationales given gold.

    Tags are (example id, kind, sample, position, its own options); the kind is "test", "think" or "explain". Test examples come
    first, so that a run that reaches its budget is measured.
    """
    for n, (i, text, own) in enumerate(itertools.chain.from_iterable(map(teacher.shown, held_out))):
        yield (i, "test", 0, n, own), think_request(teacher, prompts, text, 0, own, greedy=True)
    for n, ((i, text, own), gold) in enumerate(zip(teacher.shown(train), gold_labels(teacher, train), strict=True)):
        for sample in range(teacher.config.samples):
            yield (i, "think", sample, n, own), think_request(teacher, prompts, text, sample, own)
            if gold:
                request = explain_request(teacher, prompts, text, gold, sample, own, structured=True)
                yield (i, "explain", sample, n, own), request


# --- what completions mean --------------------------------------------------------------------------------------------


def parsed(teacher: Teacher, prompts: Prompts, choices: Sequence[str] | None, completion: Completion) -> tuple[str | None, str]:
    """(label, rationale) of a chain of thought; (None, "") of a failed one."""
    if completion["error"]:
        return None, ""
    parse = prompts.parse_json if teacher.writes_json else prompts.parse_chain_of_thought
    return parse(completion["text"], choices)


def written_rationale(teacher: Teacher, prompts: Prompts, completion: Completion) -> str:
    """The rationale of a completion of `explain_request`."""
    if completion["error"]:
        return ""
    text = completion["text"] or ""
    return prompts.parse_json(text, labelled=False)[1] if teacher.writes_json else text


def usable_rationale(rationale: str, completion: Completion) -> str:
    """The rationale as students read it, or "" if an annotation with it would be quarantined."""
    if completion["error"]:
        return ""
    rationale, problem = tidy_rationale(rationale, completion["finish_reason"])
    return "" if problem else rationale


def explains(teacher: Teacher, prompts: Prompts, completion: Completion) -> bool:
    """Whether a completion of `explain_request` is a rationale that students can learn from."""
    return bool(usable_rationale(written_rationale(teacher, prompts, completion), completion))


def thought_usable(teacher: Teacher, prompts: Prompts, tag: Tag, completion: Completion) -> bool:
    """Whether a completion of one of `thought_requests` can be used; of a test example a label is enough."""
    _, kind, _, _, choices = tag
    if kind == "explain":
        return explains(teacher, prompts, completion)
    label, rationale = parsed(teacher, prompts, choices, completion)
    return label is not None and (kind == "test" or bool(usable_rationale(rationale, completion)))
