"""Reviews → annotations: a strategy asks, the store answers what it knows, the engine the rest; or a file has all answers."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd

from cotd.errors import CotdError
from cotd.progress import say
from cotd.storage.working_copy import sync_study
from cotd.students.base_models import resolve_model
from cotd.study.config import StudyConfig
from cotd.teachers.annotations import SCHEMA
from cotd.teachers.config import TeacherConfig
from cotd.teachers.filters import REASON, FilterContext, filtered_blocks
from cotd.teachers.imported import QUARANTINED, read_answers
from cotd.teachers.output import RATIONALES
from cotd.teachers.requests import Teacher, score_request
from cotd.teachers.strategies import STRATEGIES
from cotd.utils.files import write_json, write_text
from cotd.utils.memory import release_memory
from cotd.utils.parquet import parquet_writer, read_blocks, write_blocks, write_parquet
from pipelines.annotate.ask import Asker, Complete
from pipelines.annotate.budget import Budget
from pipelines.annotate.files import QUARANTINE, AnnotationFiles
from pipelines.annotate.job import Job, prepare
from pipelines.annotate.page import DoubtfulRows, annotations_page
from pipelines.annotate.planning import planned_requests
from pipelines.annotate.summary import Tally, answer_lines, summarise, summary_lines
from pipelines.cluster.lock import only_one
from pipelines.cluster.runtime_env import require_lasting

KEPT = "the other run's answers are kept and will not be asked again."


@sync_study
def annotate(
    config: StudyConfig, complete: Complete | None = None, *, yes: bool = False, retry_errors: bool = False
) -> dict[str, Any]:
    """Annotates a study's training reviews, and scores the teacher on those test reviews that have a gold label.

    Whatever the completion store knows is not asked again, so that a run that was stopped goes on where it was, and
    a finished one does nothing.

    Args:
        complete: answers requests; the configured engine or endpoint unless given.
        yes: an endpoint's price is accepted without a question.
        retry_errors: ask only about quarantined reviews and requests that failed, also those refused for good and those
            whose answers cannot be used, which are sampled anew.

    Returns:
        The summary, which is also in `summary.json`: counts, the teacher's accuracy with its interval (None without
        gold), calibration, quality, what filters took out, quarantine reasons, tokens, cost and seconds.

    Raises:
        CotdError: bad input, before any worker starts; another process annotates this study; the price was declined;
            answers cannot be kept.
    """
    started = time.perf_counter()
    require_lasting(config)
    if config.teacher.answers and retry_errors:
        raise CotdError(
            "--retry-errors is for a teacher that can be asked again; teacher.answers are read from a file: mend that."
        )
    job = prepare(config)
    files = AnnotationFiles.of(config)
    for warning in job.warnings:
        say(f"  warning: {warning}")
    budget = Budget(config.teacher.budget, job.teacher.count)
    only = quarantined_ids(config) if retry_errors else None
    with contextlib.ExitStack() as stack:

        @functools.cache
        def engine() -> Complete:
            job.store.require_writable()
            return complete or start_engine(config, job.teacher, budget, stack)

        ask = Asker(job.store, engine, budget, only, retry=retry_errors)
        if config.teacher.api and complete is None:
            check_price(config.teacher, job, ask, yes)
        stack.enter_context(only_one(files.directory, f"annotating {config.name}", KEPT))
        if config.teacher.answers:
            output = read_answers(config.data, job.teacher, job.reviews, job.task)
        else:
            output = STRATEGIES[config.teacher.strategy](job.teacher, job.reviews, job.task, job.prompts, ask)
    release_memory()
    rows = job.reviews.rows
    if budget.reached and rows.split("test").label_counts() and not output.test["gold"].notna().any():
        raise CotdError(
            f"teacher.budget.{budget.reached} was reached before the teacher was measured on a test review. Raise it, or lower "
            "data.test_rows; what is done is kept."
        )

    def context(block: pd.DataFrame) -> FilterContext:
        return FilterContext(job.task, rows.gold(block["review_id"]))

    samples = output.read.counts["samples"] if output.read else config.teacher.samples
    tally, doubtful = Tally(job.task, votes=samples > 1), DoubtfulRows()
    with parquet_writer(files.annotations, SCHEMA) as write:
        for block in filtered_blocks(output.rows.blocks, config.teacher.filters, context, config.directory)():
            gold = rows.gold(block["review_id"])
            tally.add(block, gold)
            doubtful.add(block, gold)
            write(block)
        summary = summarise(config, job, output, tally, ask, time.perf_counter() - started)
    write_parquet(output.test, files.teacher_test)
    files.held_out_rationales.unlink(missing_ok=True)
    files.quarantined_answers.unlink(missing_ok=True)
    if output.read:
        write_blocks(output.read.quarantined.blocks(), files.quarantined_answers, QUARANTINED)
    if config.teacher.held_out_rationales:
        write_blocks(output.held_out.blocks(), files.held_out_rationales, RATIONALES)
    write_blocks(job.reviews.quarantined.blocks(), files.quarantine, QUARANTINE)
    lines = list(summary_lines(summary, files.annotations))
    reliability = summary["quality"]["labels"].get("reliability")
    shown = doubtful.rows()
    shown["text"] = rows.texts.take(rows.numbers[rows.places(shown["review_id"])])
    write_text(files.page, annotations_page(config.name, shown, doubtful.total, job.task, lines, reliability))
    write_json(files.summary, summary)
    return summary


def preview(config: StudyConfig, rows: int) -> Iterator[str]:
    """The exact prompts of the first requests of each kind, and what a run would ask, without asking."""
    job = prepare(config)
    for warning in job.warnings:
        say(f"  warning: {warning}")
    if config.teacher.answers:
        read = read_answers(config.data, job.teacher, job.reviews, job.task).read
        assert read is not None
        yield from answer_lines(read.counts, None)
        yield f"nobody is asked: {job.teacher.name} has answered, revision {job.teacher.revision}"
        return
    ask = Asker(job.store, no_engine, Budget(config.teacher.budget, job.teacher.count))
    shown: Counter[str] = Counter()
    for planned in planned_requests(job.teacher, job.reviews, job.task, job.prompts, ask.known):
        shown[planned.what] += 1
        if shown[planned.what] <= rows:
            tokens, sampling = job.teacher.count(planned.request.prompt), planned.request.sampling
            what = f"{planned.what}, review {planned.review_id}"
            yield f"--- {what}: about {tokens} tokens; {json.dumps(sampling, ensure_ascii=False)}"
            yield planned.request.prompt
    yield f"--- prompts {job.prompts.hash}, teacher {job.teacher.name}, revision {job.teacher.revision}"
    yield str(ask.estimate(planned_requests(job.teacher, job.reviews, job.task, job.prompts, ask.known)))


def no_engine() -> Complete:
    raise AssertionError("an estimate asks nothing")


def check_price(config: TeacherConfig, job: Job, ask: Asker, yes: bool) -> None:
    """Checks that the endpoint can do what is wanted, says what a run is going to cost, and asks whether to go on.

    Raises:
        CotdError: it cannot; there is nobody to ask, and no `yes`; the answer was no.
    """
    from pipelines.annotate.engines.api.engine import api_key, check_endpoint

    assert config.api is not None
    api_key(config.api)
    expected = ask.estimate(planned_requests(job.teacher, job.reviews, job.task, job.prompts, ask.known))
    if not expected.requests:
        return
    job.store.require_writable()
    scoring = config.strategy == "score_then_explain"
    probe = score_request(job.teacher, job.task, job.prompts, "Good.") if scoring else None
    check_endpoint(config.model, config.api, probe)
    say(f"  {config.model} at {config.api.base_url}: {expected}")
    if limits := [
        f"{name} {value:,}" for name, value in config.budget.model_dump(include={"max_cost", "max_tokens"}).items() if value
    ]:
        say(f"  the run stops before it passes {' or '.join(limits)}")
    if yes or expected.cost == 0:
        return
    if not sys.stdin.isatty():
        raise CotdError(f"{expected}. Nobody is at a terminal to agree: run again with --yes, or with a lower data.train_rows.")
    if input("  go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CotdError("not started; nothing was asked.")


def quarantined_ids(config: StudyConfig) -> set[str]:
    """The reviews that the study's last run has no usable annotation, or no label, for.

    Raises:
        CotdError: there was no run yet.
    """
    files = AnnotationFiles.of(config)
    if not files.summary.is_file():
        raise CotdError(
            f"{config.name} has no annotations yet, so none failed. Run `cotd annotate CONFIG` without --retry-errors."
        )
    test = pd.read_parquet(files.teacher_test)
    ids = set(test[test["predicted"].isna()]["review_id"])
    for block in read_blocks(files.annotations, ["review_id", "error"]):
        failed = block["error"].notna() & ~block["error"].fillna("").str.startswith((REASON, "not asked"))
        ids |= set(block[failed]["review_id"])
    return ids


def start_engine(config: StudyConfig, teacher: Teacher, budget: Budget, stack: contextlib.ExitStack) -> Complete:
    """Starts Ray, if it does not run, and the engine; or the client of an endpoint. `stack` ends them."""
    if config.teacher.api:
        from pipelines.annotate.engines.api.engine import api_engine

        return stack.enter_context(api_engine(config.teacher.model, config.teacher.api, teacher.count, budget.extend))
    from pipelines.annotate.engines.choose import require_engine, teacher_engine
    from pipelines.cluster.session import ray_session

    require_engine()
    stack.enter_context(ray_session())
    return stack.enter_context(teacher_engine(resolve_model(config.teacher.model), config.teacher.engine, teacher.commit))
