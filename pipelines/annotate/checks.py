"""What is checked of a study's examples and prompts before anything is asked or trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from cotd.data.table import ExampleTable
from cotd.errors import CotdError
from cotd.evaluation.seen import seen_problems
from cotd.study.config import StudyConfig
from cotd.teachers.config import TeacherConfig
from cotd.teachers.prompts import Prompts
from cotd.teachers.requests import explain_request, score_request, think_request
from cotd.teachers.student.model import StudentTeacher
from cotd.teachers.teacher import Teacher
from cotd.training.methods import METHODS

# From this share of quarantined rows on, something other than a few bad rows is wrong.
MANY = 0.05
# Few questions have more options.
MOST_LETTERS = 8


def check_context(config: TeacherConfig, teacher: Teacher, prompts: Prompts) -> None:
    """Raises a CotdError unless the longest example, with the prompt around it and the completion, fits the engine."""
    if config.api:
        return  # its context is not known here
    task = prompts.task
    choices = [""] * MOST_LETTERS if task.needs_choices else None  # the options themselves count as text
    explaining = [explain_request(teacher, prompts, "", label, 0, choices) for label in task.options(choices) or ("0",)]
    if config.strategy == "score_then_explain":
        requests = [score_request(teacher, prompts, "", choices), *explaining]
    else:
        requests = [think_request(teacher, prompts, "", 0, choices), *(explaining if config.gold_conditioned else [])]
    around = max(teacher.count(request.prompt) + int(request.sampling["max_tokens"]) for request in requests)
    context = int(config.engine.engine_kwargs.get("max_model_len") or config.engine.max_model_len)
    if around + config.max_text_tokens > context:
        raise CotdError(
            f"an example of teacher.max_text_tokens ({config.max_text_tokens}) does not fit teacher.engine.max_model_len "
            f"({context}): the prompt around it and the completion take up to {around}. Set the former to at most "
            f"{context - around}, or the latter to at least {around + config.max_text_tokens}."
        )


def check_student(config: StudyConfig, teacher: StudentTeacher, examples: ExampleTable) -> None:
    """Checks that a student can teach a study's methods, and has not seen what the study selects and tests on.

    Raises:
        CotdError: all that it cannot.
    """
    problems = [
        f"method '{name}' learns rationales, and teacher.model '{teacher.name}' is a student by "
        f"'{teacher.student.card.get('method')}', which writes none: it gives labels alone. Use distill or distill_soft, or a teacher by "
        "cot_after, cot_labelled or cot_joint."
        for name in config.grid.all_values("method")
        if any(part.rationale for part in METHODS[name].parts) and not teacher.student.can_explain
    ]
    if config.teacher.held_out_rationales and not teacher.student.can_explain:
        problems.append(f"teacher.held_out_rationales: teacher.model '{teacher.name}' writes no rationales. Set it to false.")
    held_out = pd.concat(
        pd.DataFrame({"id": list(part.decode_ids()), "split": split})
        for split, part in ((split, examples.split(split)) for split in ("validation", "test"))
    )
    problems += seen_problems({"teacher.model": str(teacher.folder)}, held_out)
    if problems:
        raise CotdError(*problems)


def quarantine_warnings(rows: int, quarantined: Counter[str]) -> list[str]:
    """What to say when many of a source's rows were quarantined, by reason."""
    total = quarantined.total()
    if total < MANY * rows:
        return []
    reasons = [f"{count:,} × {reason}" for reason, count in quarantined.most_common(5)]
    return [f"{total:,} of {rows:,} rows are quarantined: {'; '.join(reasons)}."]


def gold_problems(config: StudyConfig, labels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What the study's students need gold labels for and do not have.

    Args:
        labels: split → gold label → number of its examples.
    """
    problems = [
        f"the {split} split has no gold label, and every score is against gold. Name the label column in "
        "data.columns.label, or give labelled test rows (data.source: {train: …, test: …})."
        for split in ("validation", "test")
        if not labels[split]
    ]
    gold_methods = [m for m in config.grid.all_values("method") if METHODS[m].labels == "gold"]
    for split in ("train", "validation", "test") if gold_methods else ("validation", "test"):
        if len(labels[split]) == 1:
            ((label, count),) = labels[split].items()
            advice = f"Check data.columns.label, or take more rows (data.{split}_rows)."
            problems.append(f"the {split} split has gold labels of one kind only: {count:,} × {label}. {advice}")
    if not labels["train"]:
        problems += [
            f"method '{method}' trains on gold labels, and no training example has one. "
            "Name the label column in data.columns.label, or take it out of grid.method."
            for method in gold_methods
        ]
    return problems
