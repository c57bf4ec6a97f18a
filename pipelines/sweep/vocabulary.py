"""Whether a study's students can read its texts and write its labels, looked at before any is trained."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from cotd.errors import CotdError
from cotd.progress import say
from cotd.students.backends.kinds import model_kind
from cotd.students.base_models import read_base
from cotd.students.vocabulary import unread_warning, unwritable_labels
from cotd.training.encoding import example_blocks
from cotd.training.trial import Trial
from pipelines.sweep.plan import Plan

SAMPLE = 1000  # training texts that are looked at; they are in random order
TOLERATED = 0.01  # of their characters


def check_vocabulary(plan: Plan, trials: Iterable[Trial]) -> None:
    """Warns of training texts that students of these trials cannot read.

    Raises:
        CotdError: a student cannot write the task's labels.
    """
    sizes = {trial.size: trial.model for trial in trials}
    if not sizes:
        return
    task = plan.config.task
    rows = itertools.chain.from_iterable(block.to_dict("records") for block in example_blocks(plan.examples, "train"))
    texts = [
        task.render(row["text"], list(row["choices"]) if "choices" in row else None) for row in itertools.islice(rows, SAMPLE)
    ]
    problems = []
    for size, model in sizes.items():
        config, tokenizer = read_base(model)
        student = f"size '{size}' ({model})"
        if model_kind(config) != "encoder" and (problem := unwritable_labels(tokenizer, task, student)):
            problems.append(problem)
        if warning := unread_warning(tokenizer, texts, student, TOLERATED):
            say(f"  warning: {warning}")
    if problems:
        raise CotdError(*problems)
