"""How a student is asked that is the teacher: for its answers and their probabilities, and for rationales as it was taught to write.

Its answers are not calibrated anew: its own temperature was fitted when it was trained. A rationale *given the gold label* is
asked for where a student writes rationales after its label; of others it is their own, where their label is the gold label
(as rationalization by rejection: Zelikman et al. 2022, "STaR").
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cotd.config.digest import digest
from cotd.data.examples import Examples
from cotd.data.table import ExampleTable
from cotd.teachers.annotations import annotation_row
from cotd.teachers.calibration import Calibration
from cotd.teachers.output import TeacherOutput, annotation_rows, explained_examples, rationale_rows, test_table
from cotd.teachers.prompts import Prompts
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion
from cotd.teachers.strategies import (
    NOT_ASKED,
    Ask,
    ScoredExamples,
    Tagged,
    explain_scored,
    gold_labels,
    most_options,
    thought_parts,
    usable_rationale,
)
from cotd.teachers.student.model import StudentTeacher
from cotd.teachers.teacher import Shown

NO_ANSWER = "no answer of the task in the completion"


def ask_student(teacher: StudentTeacher, examples: Examples, prompts: Prompts, ask: Ask) -> TeacherOutput:
    """Asks a student in the order in which it writes: its answer and then why, or the other way round."""
    if teacher.student.rationale_before_label:
        return think_then_answer(teacher, examples, prompts, ask)
    return explain_scored(StudentAnswers(teacher, examples, prompts), examples, ask)


class StudentAnswers(ScoredExamples):
    """The examples that a student answers before it explains, or without an explanation.

    Attributes:
        answers: (N,) its free answers; None before they are known, and where it gave none.
    """

    teacher: StudentTeacher

    def __init__(self, teacher: StudentTeacher, examples: Examples, prompts: Prompts):
        super().__init__(teacher, examples, prompts)
        self.explains = self.explains and teacher.student.can_explain
        self.answers = np.full(len(self), None, dtype=object)

    @property
    def origin(self) -> dict[str, str]:
        return student_origin(self.teacher)

    def calibration_examples(self, examples: Examples) -> ExampleTable:
        """None: its probabilities are calibrated."""
        return examples.rows.take(slice(0))

    def calibrate(self) -> None:
        self.calibration = own_temperature(self.teacher, self.scores.shape[1])

    def requests(self) -> Iterator[Tagged]:
        """An example's scores, or its answer where that is free; tags are (example id, position, option or None, options)."""
        for n, shown in enumerate(itertools.chain.from_iterable(map(self.teacher.shown, self.parts))):
            if self.task.free_answers:
                yield (shown.id, n, None, 0), self.teacher.answer_request(shown)
            else:
                yield from tagged_scores((shown.id, n), self.teacher, shown)

    def add(self, position: int, completion: Completion, *which: Any) -> str | None:
        if self.task.free_answers:
            self.answers[position] = answer = self.teacher.answer(completion)
            return None if answer else NO_ANSWER
        add_scores(self.scores[position], completion, *which)
        return None

    def has_score(self, position: int) -> bool:
        if self.task.free_answers:
            return self.answers[position] is not None
        return not np.isnan(self.scores[position]).any()

    def choose(self, position: int) -> tuple[int, float | None]:
        return (0, None) if self.task.free_answers else super().choose(position)

    def probabilities(self, position: int) -> list[float] | None:
        return None if self.task.free_answers else super().probabilities(position)

    def labels(self, position: int, choices: Sequence[str] | None) -> list[str]:
        if self.task.free_answers:
            return [self.answers[position]] if self.has_score(position) else []
        return super().labels(position, choices)

    def labels_to_explain(self, own: Sequence[str], gold: str | None) -> Iterable[str]:
        return super().labels_to_explain(own, gold if self.teacher.student.rationale_after_label else None)

    def explanation(self, shown: Shown, label: str, sample: int) -> Request:
        return self.teacher.rationale_request(shown, label, sample)


def think_then_answer(teacher: StudentTeacher, examples: Examples, prompts: Prompts, ask: Ask) -> TeacherOutput:
    """Asks for a rationale and then, where answers are chosen among options, for the scores of these after it.

    Each sample has an answer of its own.
    """
    task, config, origin = prompts.task, teacher.config, student_origin(teacher)
    test, train = examples.rows.split("test"), examples.rows.split("train")
    explained = explained_examples(config, examples)
    rows, rationales, ids = annotation_rows(config, examples), rationale_rows(explained), set(explained.decode_ids())
    thoughts: dict[int, Completion] = {}

    def usable(tag: Any, completion: Completion) -> bool:
        return bool(usable_rationale(teacher.rationale(completion), completion))

    for tag, completion in ask(lambda: thought_requests(teacher, examples), "rationales", usable):
        thoughts[tag[1]] = completion
    scores = np.full((len(thoughts), most_options([test, train], task)), np.nan, dtype=np.float32)
    tokens = np.zeros(len(thoughts), dtype=np.int64)
    if not task.free_answers:
        for (_, n, *which), completion in ask(
            lambda: answer_requests(teacher, examples, thoughts), "label scores", lambda tag, completion: True
        ):
            if not completion["error"]:
                add_scores(scores[n], completion, *which)
                tokens[n] += completion["prompt_tokens"]
    calibration = own_temperature(teacher, scores.shape[1])
    golds = list(gold_labels(teacher, train))
    labels, chances = np.full(len(test), None, dtype=object), np.full(len(test), np.nan)
    asked = np.ones(len(test), dtype=bool)
    for example_id, n, kind, sample, position, choices in thought_units(teacher, examples):
        completion = thoughts[n]
        why, label, chance, each = "", None, None, None
        if not completion["error"]:
            why = teacher.rationale(completion)
            if task.free_answers:
                label = teacher.answer(completion)
            elif not np.isnan(scores[n]).any():
                best, chance = calibration.choose(scores[n])
                label, each = (task.options(choices) or ())[best], calibration.probabilities(scores[n][None])[0].tolist()
        if kind == "train":
            error = None if label or completion["error"] else NO_ANSWER
            given = (completion, origin, int(tokens[n]), error)
            rows.add(annotation_row(example_id, sample, False, label, chance, why, *given, probabilities=each))
            if label is not None and label == golds[position]:
                rows.add(annotation_row(example_id, sample, True, label, None, why, completion, origin))
            continue
        if kind == "test":
            labels[position], chances[position] = label, chance
            asked[position] = completion["finish_reason"] != NOT_ASKED
        if example_id in ids and completion["finish_reason"] != NOT_ASKED:
            rationales.add({"example_id": example_id, "rationale": usable_rationale(why, completion)})
    return TeacherOutput(rows, test_table(test, labels, chances, asked), None, rationales)


def thought_units(teacher: StudentTeacher, examples: Examples) -> Iterator[tuple[Any, ...]]:
    """(Example id, number, kind, sample, position in its part, options) of each rationale that is asked for."""
    numbers = itertools.count()
    train, samples = examples.rows.split("train"), teacher.config.samples
    for kind, part in zip(("test", "held out"), thought_parts(teacher.config, examples), strict=True):
        for position, (i, choices) in enumerate(zip(part.decode_ids(), part.own_choices(), strict=True)):
            yield i, next(numbers), kind, 0, position, choices
    for position, (i, choices) in enumerate(zip(train.decode_ids(), train.own_choices(), strict=True)):
        for sample in range(samples):
            yield i, next(numbers), "train", sample, position, choices


def shown_units(teacher: StudentTeacher, examples: Examples) -> Iterator[tuple[tuple[Any, ...], Shown]]:
    """Each of `thought_units` with its example."""
    samples = teacher.config.samples
    held_out = itertools.chain.from_iterable(map(teacher.shown, thought_parts(teacher.config, examples)))
    train = itertools.chain.from_iterable(itertools.repeat(s, samples) for s in teacher.shown(examples.rows.split("train")))
    yield from zip(thought_units(teacher, examples), itertools.chain(held_out, train), strict=True)


def thought_requests(teacher: StudentTeacher, examples: Examples) -> Iterator[Tagged]:
    """Rationales with their answers; tags are (example id, number). Test examples, which are asked about first, are greedy."""
    for (i, n, kind, sample, *_), shown in shown_units(teacher, examples):
        yield (i, n), teacher.rationale_request(shown, None, sample, greedy=kind != "train")


def answer_requests(teacher: StudentTeacher, examples: Examples, thoughts: dict[int, Completion]) -> Iterator[Tagged]:
    """The scores of options after what was written; tags are (example id, number, option or None, options)."""
    for (i, n, *_), shown in shown_units(teacher, examples):
        if not thoughts[n]["error"]:
            yield from tagged_scores((i, n), teacher, shown, teacher.rationale(thoughts[n]))


def tagged_scores(
    tag: tuple[Any, ...], teacher: StudentTeacher, shown: Shown, rationale: str | None = None
) -> Iterator[Tagged]:
    """The requests for an example's scores, whose tags end in (option, or None if one request is of all; number of options)."""
    requests = teacher.score_requests(shown, rationale)
    single = "allowed_token_ids" in requests[0].sampling
    for option, request in enumerate(requests):
        yield (*tag, None if single else option, len(requests)), request


def add_scores(scores: np.ndarray, completion: Completion, option: int | None, options: int) -> None:
    """Enters what a completion of `tagged_scores` says into an example's (L,) scores."""
    if option is None:
        scores[:] = completion["label_logprobs"]
        return
    scores[option], scores[options:] = completion["logprob"], -np.inf


def own_temperature(teacher: StudentTeacher, options: int) -> Calibration:
    """What turns a student's scores into its probabilities."""
    return Calibration("none", 1 / teacher.student.temperature, (0.0,) * options, 0, 0, "its own temperature")


def student_origin(teacher: StudentTeacher) -> dict[str, str]:
    """As `origin_of`; its prompts are those of its task and form, which its revision includes."""
    return {"teacher": teacher.name, "revision": teacher.revision, "prompt_hash": digest(teacher.student.task.to_dict())}
