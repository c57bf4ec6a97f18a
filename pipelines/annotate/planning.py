"""What a run is going to ask and what that takes, as far as can be said before: for estimates and dry runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from cotd.errors import CotdError
from cotd.teachers import strategies
from cotd.teachers.calibration import Calibration
from cotd.teachers.output import explained_examples
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion
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
    parts = strategies.thought_parts(job.teacher.config, job.examples)
    for tag, request in strategies.thought_requests(job.teacher, job.prompts, parts, job.examples.rows.split("train")):
        usable = partial(strategies.thought_usable, job.teacher, job.prompts, job.task, tag)
        yield Planned(THOUGHTS[tag[1]], tag[0], request, usable)


def planned_scoring(job: Job, ask: Asker) -> Iterator[Planned]:
    teacher, task, prompts, config = job.teacher, job.task, job.prompts, job.teacher.config
    train, test = job.examples.rows.split("train"), job.examples.rows.split("test")
    held_out, explained = strategies.calibration_examples(config, job.examples), explained_examples(config, job.examples)
    parts = strategies.scored_examples(held_out, test, train, explained)
    positions, size = strategies.positions_of(parts), sum(map(len, parts))
    scores, unscored = np.full(size, np.nan), np.zeros(size, dtype=bool)  # neither has a score nor is unscored: it was refused
    for block in batched(strategies.score_requests(teacher, task, prompts, parts), LOOKUP_ROWS):
        known, _, _ = ask.look_up(block, lambda tag, completion: True)
        for (example_id, n), request in block:
            if (completion := known.get(request.key)) is None:
                unscored[n] = True
            elif not completion["error"]:
                scores[n] = strategies.label_score(completion, task)
            yield Planned("label score", example_id, request)
    calibration: Calibration | None = None  # not known where a score that it takes is not
    if not unscored[: len(held_out)].any():
        with contextlib.suppress(CotdError):  # the run says so
            calibration = strategies.calibrate_on(held_out, scores, config, task)
    has_gold = np.zeros(size, dtype=bool)
    has_gold[positions[train.numbers]] = [gold is not None for gold in strategies.gold_labels(teacher, train)]
    every_label = list(task.labels)

    def labels(n: int) -> list[str]:
        """Those that the teacher may give an example."""
        if calibration is None or unscored[n]:
            return every_label if has_gold[n] else every_label[:1]
        return [] if np.isnan(scores[n]) else [calibration.label(scores[n], task)[0]]

    for (example_id, n, _, _, kinds), request in strategies.rationale_requests(
        teacher, prompts, train, explained, positions, labels
    ):
        certain = kinds != (False,) or len(labels(n)) == 1
        kind = "rationale given a label" if certain else "rationale given a label that may turn out to be the teacher's"
        yield Planned(kind, example_id, request, partial(strategies.explains, teacher, prompts), certain)
