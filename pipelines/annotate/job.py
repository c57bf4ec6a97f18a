"""What an annotation run works on: examples, prompts, teacher and store, loaded and checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cotd.config.digest import digest
from cotd.data.config import SPLITS
from cotd.data.examples import Examples
from cotd.data.sources import load_examples, noun
from cotd.errors import CotdError
from cotd.progress import say
from cotd.study.checks import scoring_problems
from cotd.study.config import StudyConfig
from cotd.study.stages import teacher_folder
from cotd.study.students import student_kinds
from cotd.tasks.base import Task
from cotd.teachers.imported import check_imported, imported_digest, imported_teacher
from cotd.teachers.prompts import Prompts, load_prompts
from cotd.teachers.store import CompletionStore
from cotd.teachers.strategies import calibration_examples
from cotd.teachers.student.model import load_student_teacher, student_revision
from cotd.teachers.teacher import Teacher, load_teacher
from cotd.utils.memory import release_memory
from pipelines.annotate.checks import check_context, check_student, gold_problems, quarantine_warnings


@dataclass(frozen=True)
class Job:
    """What an annotation run works on, checked."""

    examples: Examples
    task: Task
    prompts: Prompts
    teacher: Teacher
    store: CompletionStore
    warnings: list[str]
    inputs: str  # see annotation_inputs


def load_job(config: StudyConfig) -> Job:
    """Loads and checks all that a run needs, says what to be warned of, and starts nothing.

    Gold labels are needed by Platt scaling alone.

    Raises:
        CotdError: bad examples, prompts, teacher or imported file; no gold labels to calibrate on; no such store; too small a
            context.
    """
    if problems := scoring_problems(config.teacher, config.task):
        raise CotdError(*(f"{problem}." for problem in problems))
    if config.teacher.imported:
        check_imported(config.data, config.teacher.imported)
    student_kinds(config, unread=True)
    examples = load_examples(config.data, config.task, config.directory)
    inputs = annotation_inputs(config, examples.digest())
    release_memory()
    if config.teacher.strategy == "score_then_explain":
        calibration_examples(config.teacher, examples, config.task)
    task = config.task
    prompts = study_prompts(config)
    store = CompletionStore(config.teacher.store or completions_place(config))
    if config.teacher.imported:
        teacher = imported_teacher(config.data, config.teacher)
    elif folder := teacher_folder(config):
        teacher = load_student_teacher(config.teacher, folder, task)
        check_student(config, teacher, examples.rows)
    else:
        teacher = load_teacher(config.teacher)
        check_context(config.teacher, teacher, prompts)
    warnings = quarantine_warnings(examples.counts["rows"], examples.quarantined.counts())
    labels = {split: examples.rows.split(split).label_counts() for split in SPLITS}
    warnings += [f"students cannot be trained yet: {problem}" for problem in gold_problems(config, labels)]
    for warning in warnings:
        say(f"  warning: {warning}")
    return Job(examples, task, prompts, teacher, store, warnings, inputs)


def completions_place(config: StudyConfig) -> Path | str:
    """Where the studies of one storage keep completions, unless `teacher.store` names another place."""
    return f"{config.storage.rstrip('/')}/completions" if config.remote else config.local_storage / "completions"


def annotation_inputs(config: StudyConfig, examples_digest: str) -> str:
    """A digest of all that decides a study's annotations: teacher, prompts and examples, but not where the engine runs."""
    if folder := teacher_folder(config):
        return digest([config.teacher.identity(), student_revision(folder), examples_digest])
    prompts = study_prompts(config)
    imported = [imported_digest(config.data, config.teacher.imported)] if config.teacher.imported else []
    return digest([config.teacher.identity(), prompts.hash, examples_digest, *imported])


def study_prompts(config: StudyConfig) -> Prompts:
    """The prompts that a study's teacher is asked by; a student's own words are not among them."""
    file = None if config.teacher.strategy == "student" else config.teacher.prompts
    return load_prompts(config.task, noun(config.data, config.task), file)
