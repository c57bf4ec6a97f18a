"""What a run would ask: shown by a dry run, and agreed to before an endpoint is paid."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator

from cotd.errors import CotdError
from cotd.progress import say
from cotd.study.config import StudyConfig
from cotd.teachers.config import TeacherConfig
from cotd.teachers.imported import read_imported
from cotd.teachers.requests import score_request
from pipelines.annotate.ask import Asker, Complete
from pipelines.annotate.budget import Budget
from pipelines.annotate.engines.api.engine import api_key, check_endpoint
from pipelines.annotate.job import Job, load_job
from pipelines.annotate.planning import Planned, estimate, planned_requests
from pipelines.annotate.summary import import_lines


def preview(config: StudyConfig, rows: int) -> Iterator[str]:
    """The exact prompts of the first requests of each kind, and what a run would ask, without asking."""
    job = load_job(config)
    teacher = job.teacher
    if config.teacher.imported:
        imported = read_imported(config.data, teacher, job.examples, job.task).imported
        assert imported is not None
        yield from import_lines(imported.counts, None)
        yield f"nothing is asked: the labels and rationales of {teacher.name} are imported, revision {teacher.revision}"
        return
    shown: Counter[str] = Counter()
    lines: list[str] = []

    def planned() -> Iterator[Planned]:
        for plan in planned_requests(job, ask):
            shown[plan.kind] += 1
            if shown[plan.kind] <= rows:
                sampling = json.dumps(plan.request.sampling, ensure_ascii=False)
                tokens = teacher.count(plan.request.prompt)
                lines.append(f"--- {plan.kind}, example {plan.example_id}: about {tokens} tokens; {sampling}")
                lines.append(plan.request.prompt)
            yield plan

    ask = Asker(job.store, no_engine, Budget(config.teacher.budget, teacher.count))
    total = estimate(planned(), ask)
    yield from lines
    yield f"--- prompts {job.prompts.hash}, teacher {teacher.name}, revision {teacher.revision}"
    yield str(total)


def no_engine() -> Complete:
    raise AssertionError("a preview asks nothing")


def check_price(config: TeacherConfig, job: Job, ask: Asker, yes: bool) -> None:
    """Checks that the endpoint can do what is needed, says what a run is going to cost, and asks whether to continue.

    Raises:
        CotdError: it cannot; there is no terminal to ask at, and no `yes`; the user said no.
    """
    assert config.api is not None
    api_key(config.api)
    expected = estimate(planned_requests(job, ask), ask)
    if not expected.requests:
        return
    job.store.require_writable()
    scoring = config.strategy == "score_then_explain"
    options = ["yes", "no"] if job.task.needs_choices else None
    probe = score_request(job.teacher, job.prompts, "Good.", options) if scoring else None
    check_endpoint(config.model, config.api, probe)
    say(f"  {config.model} at {config.api.base_url}: {expected}")
    limits = {"max_cost": config.budget.max_cost, "max_tokens": config.budget.max_tokens}
    if reached := [f"{name} {value:,}" for name, value in limits.items() if value]:
        say(f"  the run stops before it exceeds {' or '.join(reached)}")
    if yes or expected.cost == 0:
        return
    if not sys.stdin.isatty():
        raise CotdError(f"{expected}. There is no terminal to ask at: run again with --yes, or with a lower data.train_rows.")
    if input("  continue? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CotdError("not started; nothing was asked.")
