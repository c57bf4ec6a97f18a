"""What a run is going to ask and what that takes, as far as can be said before: for estimates and dry runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from cotd.errors import CotdError
from cotd.teachers import strategies
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion
from cotd.teachers.student.model import StudentTeacher
from cotd.teachers.student.strategy import StudentAnswers, thought_requests
from cotd.utils.iteration import batched
from cotd.utils.keys import KeySet
from pipelines.annotate.ask import LOOKUP_ROWS, Asker
from pipelines.annotate.job import Job

THOUGHTS = {
    "test": "chain of thought of a held-out example",
    "think": "chain of thought",
    "explain": "rationale given the gold label",
}


@dataclass(frozen=True)
class Planned:
    """A request that a run makes, unless the store has its completion.

    Attributes:
        kind: of request, in words. usable: whether a completion can be used.
        certain: False where only the run will show whether it is needed.
    """

    kind: str
    example_id: str
    request: Request
    usable: Callable[[Completion], bool] = lambda completion: True
    certain: bool = True


@dataclass(frozen=True)
class Estimate:
    """What a run is going to ask.

    Attributes:
        requests: those that the store has no completion of. from_store: the others.
        uncertain: how many of `requests` may turn out not to be needed.
        prompt_tokens: about how many they have. output_tokens: at most how many the completions have.
        cost: at most, about; None without prices.
    """

    requests: int
    from_store: int
    uncertain: int
    prompt_tokens: int
    output_tokens: int
    cost: float | None

    def __str__(self) -> str:
        cost = "prices are not configured" if self.cost is None else f"at most about {self.cost:,.2f}"
        most = "at most " if self.uncertain else ""
        return (
            f"{most}{self.requests:,} requests to make ({self.from_store:,} completions are in the store): about "
            f"{self.prompt_tokens:,} prompt tokens and at most {self.output_tokens:,} output tokens; {cost}"
        )


def estimate(planned: Iterable[Planned], ask: Asker) -> Estimate:
    """What a run is going to ask, of the requests that it plans."""
    seen = KeySet()
    requests = from_store = uncertain = prompt_tokens = output_tokens = 0
    for block in batched((((p.example_id, p), p.request) for p in planned), LOOKUP_ROWS):
        known, skipped, _ = ask.look_up(block, lambda tag, completion: tag[1].usable(completion))
        needed = [plan for (_, plan), request in block if request.key not in skipped]
        repeated = seen.add([plan.request.key for plan in needed])
        for plan, again in zip(needed, repeated, strict=True):
            if again:
                continue
            if plan.request.key in known:
                from_store += plan.certain
                continue
            requests += 1
            uncertain += not plan.certain
            prompt_tokens += ask.budget.count(plan.request.prompt)
            output_tokens += int(plan.request.sampling["max_tokens"])
    cost = ask.budget.config.cost(prompt_tokens, output_tokens)
    return Estimate(requests, from_store, uncertain, prompt_tokens, output_tokens, cost)


def planned_requests(job: Job, ask: Asker) -> Iterator[Planned]:
    """The requests of a run, as its strategy makes them.

    A scoring teacher explains its own labels, which follow from its scores. Where the store lacks scores, each example's
    rationale given its gold label is certain, and one given another label uncertain; without gold there is one, for
    whichever label.
    """
    if job.teacher.config.strategy == "score_then_explain":
        yield from planned_scoring(job, ask)
        return
    if isinstance(job.teacher, StudentTeacher):
        yield from planned_of_student(job.teacher, job)
        return
    parts = strategies.thought_parts(job.teacher.config, job.examples)
    for tag, request in strategies.thought_requests(job.teacher, job.prompts, parts, job.examples.rows.split("train")):
        usable = partial(strategies.thought_usable, job.teacher, job.prompts, tag)
        yield Planned(THOUGHTS[tag[1]], tag[0], request, usable)


def planned_of_student(teacher: StudentTeacher, job: Job) -> Iterator[Planned]:
    """The requests to a student; only the run shows what is asked after what it has written, or about its own label."""
    if teacher.student.rationale_before_label:
        for (i, *_), request in thought_requests(teacher, job.examples):
            yield Planned("rationale and answer", i, request)
        return
    answers = StudentAnswers(teacher, job.examples, job.prompts)
    for (i, *_), request in answers.requests():
        yield Planned("answer" if job.task.free_answers else "label score", i, request)
    after_label = teacher.student.rationale_after_label
    for (i, *_), request in answers.rationale_requests(lambda n, own: (job.task.options(own) or ("0",))[:1]):
        yield Planned("rationale", i, request, certain=not after_label)


def planned_scoring(job: Job, ask: Asker) -> Iterator[Planned]:
    scored = strategies.ScoredExamples(job.teacher, job.examples, job.prompts)
    unscored = np.zeros(len(scored), dtype=bool)  # neither has a score nor is unscored: it was refused
    for block in batched(scored.requests(), LOOKUP_ROWS):
        known, _, _ = ask.look_up(block, lambda tag, completion: True)
        for (example_id, n), request in block:
            if (completion := known.get(request.key)) is None:
                unscored[n] = True
            elif not completion["error"]:
                scored.add(n, completion)
            yield Planned("label score", example_id, request)
    if not unscored[: len(scored.held_out)].any():  # else the calibration is not known yet
        with contextlib.suppress(CotdError):  # the run says so
            scored.calibrate()
    golds = np.full(len(scored), None, dtype=object)
    golds[scored.positions[scored.train.numbers]] = list(strategies.gold_labels(job.teacher, scored.train))

    def labels(n: int, choices: Sequence[str] | None) -> list[str]:
        """The teacher's label or, where that is not known yet, one that may be: another than gold, which is asked about anyway."""
        if scored.calibration is None or unscored[n]:
            return [option for option in job.task.options(choices) or () if option != golds[n]][:1]
        return scored.labels(n, choices)

    for (example_id, n, _, _, kinds), request in scored.rationale_requests(labels):
        certain = kinds != (False,) or golds[n] is None or not (scored.calibration is None or unscored[n])
        kind = "rationale given a label" if certain else "rationale given a label that may turn out to be the teacher's"
        yield Planned(kind, example_id, request, partial(strategies.explains, job.teacher, job.prompts), certain)
