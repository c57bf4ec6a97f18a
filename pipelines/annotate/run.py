"""Examples → annotations: a strategy asks, the store has what was completed before, the engine the rest; or all of it is imported."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from cotd.errors import CotdError
from cotd.storage.sync import sync_study
from cotd.study.config import StudyConfig
from cotd.teachers.annotations import SCHEMA
from cotd.teachers.filters import FILTERED, FilterContext, filtered_blocks
from cotd.teachers.imported import QUARANTINED, read_imported
from cotd.teachers.output import RATIONALES, TeacherOutput
from cotd.teachers.strategies import STRATEGIES
from cotd.teachers.student.strategy import ask_student
from cotd.utils.files import write_json, write_text
from cotd.utils.memory import release_memory
from cotd.utils.parquet import parquet_writer, read_blocks, write_blocks, write_parquet
from pipelines.annotate.ask import Asker, Complete
from pipelines.annotate.budget import Budget
from pipelines.annotate.files import QUARANTINE, AnnotationFiles, replaced_together
from pipelines.annotate.job import Job, load_job
from pipelines.annotate.journal import recover
from pipelines.annotate.page import DoubtfulRows, annotations_page
from pipelines.annotate.preview import check_price
from pipelines.annotate.summary import Tally, summarise, summary_lines
from pipelines.cluster.lock import only_one_machine
from pipelines.cluster.runtime_env import require_lasting

ASK = STRATEGIES | {"student": ask_student}


@sync_study
def annotate(
    config: StudyConfig,
    complete: Complete | None = None,
    *,
    yes: bool = False,
    retry_errors: bool = False,
    before_asking: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Annotates a study's training examples, and scores the teacher on those test examples that have a gold label.

    Whatever the completion store knows is not asked again: a run that was stopped resumes where it was, and a finished one
    does nothing.

    Args:
        complete: completes requests; the configured engine or endpoint unless given.
        yes: accept an endpoint's price without a question.
        retry_errors: ask only about quarantined examples and requests that failed, also those refused for good and those
            whose completions cannot be used, which are sampled anew.
        before_asking: called once the input is known to be good; what it raises ends the run before anything is paid.

    Returns:
        The summary, which is also in `summary.json`: counts, the teacher's accuracy with its interval (None without
        gold), calibration, quality, what filters took out, quarantine reasons, tokens, cost and seconds.

    Raises:
        CotdError: bad input, before any worker starts; another process annotates this study; the price was declined;
            completions cannot be kept.

    Example:
        >>> summary = cotd.annotate(cotd.load_config("imported.yaml"))
        >>> summary["teacher"]["model"]
        'gpt-3.5-turbo'
    """
    started = time.perf_counter()
    require_lasting(config)
    if config.teacher.imported and retry_errors:
        raise CotdError("--retry-errors needs a teacher that can be asked: teacher.imported is a file. Fix the file instead.")
    job = load_job(config)
    if before_asking:
        before_asking()
    files = AnnotationFiles.of(config)
    budget = Budget(config.teacher.budget, job.teacher.count)
    only = quarantined_ids(config.name, files) if retry_errors else None
    recover(files.journal, job.store)
    with contextlib.ExitStack() as alone:
        with contextlib.ExitStack() as stack:

            @functools.cache
            def engine() -> Complete:
                from pipelines.annotate.engines.choose import start_engine  # Ray, which takes a second to import

                job.store.require_writable()
                return complete or start_engine(config.teacher, job.teacher, budget.extend, files, stack)

            ask = Asker(job.store, engine, budget, only, retry=retry_errors)
            if config.teacher.api and complete is None:
                check_price(config.teacher, job, ask, yes)
            kept = "the other run's completions are kept and will not be asked for again."
            alone.enter_context(only_one_machine(config, "annotate", f"annotating {config.name}", kept))
            if config.teacher.imported:
                output = read_imported(config.data, job.teacher, job.examples, job.task)
            else:
                output = ASK[config.teacher.strategy](job.teacher, job.examples, job.prompts, ask)
        release_memory()
        if budget.reached and job.examples.rows.split("test").label_counts() and not output.test["gold"].notna().any():
            raise CotdError(
                f"teacher.budget.{budget.reached} was reached before the teacher was measured on a test example. Raise it, or lower "
                "data.test_rows; what is done is kept."
            )
        return write_output(config, job, output, ask, started)


def write_output(config: StudyConfig, job: Job, output: TeacherOutput, ask: Asker, started: float) -> dict[str, Any]:
    """Filters the annotations and writes all files of a run, together; returns the summary."""
    files, rows = AnnotationFiles.of(config), job.examples.rows

    def read(ids: Sequence[str]) -> tuple[Sequence[str], Sequence[Sequence[str] | None]]:
        examples = rows.take(rows.positions(ids))
        return rows.texts.take(examples.numbers), list(examples.own_choices())

    models: dict[str, Any] = {}

    def context(block: pd.DataFrame) -> FilterContext:
        return FilterContext(job.task, rows.gold(block["example_id"]), read, models)

    samples = output.imported.counts["samples"] if output.imported else config.teacher.samples
    tally, doubtful = Tally(job.task, votes=samples > 1), DoubtfulRows()
    with replaced_together(files) as new:
        with parquet_writer(new.annotations, SCHEMA) as write:
            for block in filtered_blocks(output.annotations.blocks, config.teacher.filters, context, config.directory)():
                gold = rows.gold(block["example_id"])
                tally.add(block, gold)
                doubtful.add(block, gold)
                write(block)
            summary = summarise(config, job, output, tally, ask, time.perf_counter() - started)
        write_parquet(output.test, new.teacher_test)
        if output.imported:
            write_blocks(output.imported.quarantined.blocks(), new.quarantined_imported, QUARANTINED)
        if config.teacher.held_out_rationales:
            write_blocks(output.held_out.blocks(), new.held_out_rationales, RATIONALES)
        write_blocks(job.examples.quarantined.blocks(), new.quarantine, QUARANTINE)
        shown = doubtful.rows()
        shown["text"] = list(map(job.task.render, *read(shown["example_id"])))
        lines = list(summary_lines(summary, files.annotations))
        reliability = summary["quality"]["labels"].get("reliability")
        write_text(new.page, annotations_page(config.name, shown, doubtful.total, job.task, lines, reliability))
        write_json(new.summary, summary)
    return summary


def quarantined_ids(study: str, files: AnnotationFiles) -> set[str]:
    """The examples that the study's last run has no usable annotation, or no label, for.

    Raises:
        CotdError: there was no run yet.
    """
    if not files.summary.is_file():
        raise CotdError(f"{study} has no annotations yet, so none failed. Run `cotd annotate CONFIG` without --retry-errors.")
    test = pd.read_parquet(files.teacher_test)
    ids = set(test[test["predicted"].isna()]["example_id"])
    for block in read_blocks(files.annotations, ["example_id", "error"]):
        failed = block["error"].notna() & ~block["error"].fillna("").str.startswith((FILTERED, "not asked"))
        ids |= set(block[failed]["example_id"])
    return ids
