"""What an annotation run works on: reviews, prompts, teacher and store, loaded and checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cotd.config.digest import digest
from cotd.data.examples import Examples
from cotd.data.sources import load_examples, noun
from cotd.data.table import SPLITS
from cotd.errors import CotdError
from cotd.study.config import StudyConfig
from cotd.tasks.base import Task
from cotd.tasks.registry import get_task
from cotd.teachers.config import TeacherConfig
from cotd.teachers.imported import answers_digest, check_answers, reading_teacher
from cotd.teachers.loading import load_teacher
from cotd.teachers.prompts import Prompts, load_prompts
from cotd.teachers.requests import Teacher, explain_request, score_request, think_request
from cotd.teachers.store import CompletionStore
from cotd.teachers.strategies import calibration_reviews
from cotd.training.methods import METHODS
from cotd.utils.memory import release_memory

# From this share of set-aside rows on, something other than a few bad rows is wrong.
MANY = 0.05


@dataclass(frozen=True)
class Job:
    """What an annotation run works on, checked."""

    reviews: Examples
    task: Task
    prompts: Prompts
    teacher: Teacher
    store: CompletionStore
    warnings: list[str]
    inputs: str  # see annotation_inputs


def completions_place(config: StudyConfig) -> Path | str:
    """Where the studies of one storage keep what teachers answered, unless `teacher.store` names another place."""
    return f"{config.storage.rstrip('/')}/completions" if config.remote else config.local_storage / "completions"


def prepare(config: StudyConfig) -> Job:
    """Loads and checks all that a run needs, and starts nothing. Gold labels are needed by Platt scaling alone.

    Raises:
        CotdError: bad reviews, prompts, teacher or file of answers; no gold labels to calibrate on; no such store; too small a context.
    """
    if config.teacher.answers:
        check_answers(config.data, config.teacher)
    reviews = load_examples(config.data, config.directory)
    inputs = annotation_inputs(config, reviews)
    release_memory()
    if config.teacher.strategy == "score_then_explain":
        calibration_reviews(config.teacher, reviews)
    task = get_task(config.data.task)
    prompts = load_prompts(task, noun(config.data), config.teacher.prompts)
    store = CompletionStore(config.teacher.store or completions_place(config))
    if config.teacher.answers:
        teacher = reading_teacher(config.data, config.teacher)
    else:
        teacher = load_teacher(config.teacher)
        check_context(config.teacher, teacher, task, prompts)
    warnings = quarantine_warnings(reviews)
    warnings += [f"students cannot be trained yet: {problem}" for problem in gold_problems(config, reviews)]
    return Job(reviews, task, prompts, teacher, store, warnings, inputs)


def check_context(config: TeacherConfig, teacher: Teacher, task: Task, prompts: Prompts) -> None:
    """Raises a CotdError unless the longest review, with all that a prompt puts around it and the answer, fits the engine."""
    if config.api:
        return  # its context is not known here
    if config.strategy == "score_then_explain":
        requests = [score_request(teacher, task, prompts, "")]
        requests += [explain_request(teacher, prompts, "", label, 0) for label in task.labels]
    else:
        requests = [think_request(teacher, prompts, "", 0)]
        requests += [explain_request(teacher, prompts, "", label, 0) for label in task.labels if config.gold_conditioned]
    around = max(teacher.count(request.prompt) + int(request.sampling["max_tokens"]) for request in requests)
    context = int(config.engine.engine_kwargs.get("max_model_len") or config.engine.max_model_len)
    if around + config.max_review_tokens > context:
        raise CotdError(
            f"a review of teacher.max_review_tokens ({config.max_review_tokens}) does not fit teacher.engine.max_model_len "
            f"({context}): the prompt around it and the answer take up to {around}. Set the former to at most "
            f"{context - around}, or the latter to at least {around + config.max_review_tokens}."
        )


def quarantine_warnings(reviews: Examples) -> list[str]:
    """What to say when many of a source's rows were set aside."""
    rows, aside = reviews.counts["rows"], len(reviews.quarantined)
    if aside < MANY * rows:
        return []
    reasons = [f"{count:,} × {reason}" for reason, count in reviews.quarantined.counts().most_common(5)]
    warning = f"{aside:,} of {rows:,} rows are set aside: {'; '.join(reasons)}."
    if any(" is not one of " in reason for reason in reasons):
        warning += (
            " Is data.columns.label the right column? Stars or scores have to be mapped to labels first: a bare 1 counts as "
            "positive, a bare 0 as negative."
        )
    return [warning]


def check_gold(config: StudyConfig, reviews: Examples) -> None:
    """Raises, all at once, what the study's students need gold labels for and do not have."""
    if problems := gold_problems(config, reviews):
        raise CotdError(*problems[:-1], " ".join([problems[-1], *quarantine_warnings(reviews)]))


def gold_problems(config: StudyConfig, reviews: Examples) -> list[str]:
    """What the study's students need gold labels for and do not have."""
    problems = []
    labels = {split: reviews.rows.split(split).label_counts() for split in SPLITS}
    for split in ("validation", "test"):
        if not labels[split]:
            problems.append(
                f"the {split} split has no gold label, and every score is against gold. Name the label column in "
                "data.columns.label, or give labelled test rows (data.source: {train: …, test: …})."
            )
    trains_on_gold = any(METHODS[m].labels == "gold" for m in config.grid.all_values("method"))
    for split in ("train", "validation", "test") if trains_on_gold else ("validation", "test"):
        if len(labels[split]) == 1:
            ((label, count),) = labels[split].items()
            advice = f"Check data.columns.label, or take more rows (data.{split}_rows)."
            problems.append(f"the {split} split has gold labels of one kind only: {count:,} × {label}. {advice}")
    if not labels["train"]:
        for method in config.grid.all_values("method"):
            if METHODS[method].labels == "gold":
                problems.append(
                    f"method '{method}' trains on gold labels, and no training review has one. "
                    "Name the label column in data.columns.label, or take it out of grid.method."
                )
    return problems


def annotation_inputs(config: StudyConfig, reviews: Examples) -> str:
    """A digest of all that decides a study's annotations: teacher, prompts and reviews, but not where the engine runs."""
    prompts = load_prompts(get_task(config.data.task), noun(config.data), config.teacher.prompts)
    read = [answers_digest(config.data, config.teacher)] if config.teacher.answers else []
    return digest([config.teacher.identity(), prompts.hash, reviews.digest(), *read])
