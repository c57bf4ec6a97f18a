"""What a study's base models are, and whether its students can be made of them: checked before anything is paid or trained."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from cotd.errors import CotdError
from cotd.students.backends.base import tokenizer_problem
from cotd.students.backends.causal.prompts import Frame
from cotd.students.backends.kinds import context_length, encoder_problem, model_kind
from cotd.students.base_models import read_base
from cotd.students.partial import partial_problem, skeleton
from cotd.study.config import StudyConfig
from cotd.tasks.base import Task
from cotd.teachers.filters import scorer_problems
from cotd.training.config import TrainingConfig
from cotd.training.methods import METHODS


def student_kinds(config: StudyConfig, unread: bool = False) -> dict[str, str]:
    """Size → kind of its base model, of each size in the grid.

    Args:
        unread: whether models that cannot be read are left out: they are fetched when their training begins.

    Raises:
        CotdError: a base model cannot be read, or its students cannot do what the study asks of them; names all such. Or a model
            that filters score with cannot.
    """
    kinds: dict[str, str] = {}
    lists = [config.teacher.filters, *(own for part in (config.grid, *config.grid.include) for own in part.filters or [])]
    problems = scorer_problems(list(chain.from_iterable(lists)), config.task)
    for size in config.grid.all_values("size"):
        source = config.sizes[size]
        try:
            base, tokenizer = read_base(source)
        except CotdError as error:
            problems += [] if unread else error.problems
            continue
        try:
            kinds[size] = kind = model_kind(base)
        except CotdError as error:
            problems += [f"sizes.{size}: {problem}" for problem in error.problems]
            continue
        cells = [cell for cell in config.grid.all_cells() if cell.size == size]
        found = list(model_problems(base, tokenizer, kind, config.task))
        for cell in cells if not found else []:
            found += method_problems(kind, cell.method)
            found += setting_problems(base, tokenizer, kind, config.task, config.training.for_kind(kind, **cell.training))
        problems += [f"sizes.{size} ({source}): {problem}" for problem in dict.fromkeys(found)]
    if problems:
        raise CotdError(*problems)
    return kinds


def model_problems(base: Any, tokenizer: Any, kind: str, task: Task) -> Iterator[str]:
    """What is wrong with a model for a task, whatever it is taught."""
    text_config = base.get_text_config(decoder=kind == "causal")
    if problem := tokenizer_problem(kind, tokenizer, text_config.vocab_size):
        yield problem
    if kind == "encoder" and (problem := encoder_problem(task)):
        yield problem


def method_problems(kind: str, method: str) -> Iterator[str]:
    """What a kind of student cannot be taught."""
    if kind == "encoder" and METHODS[method].writes_rationales:
        yield (
            f"method '{method}' teaches to write rationales, and an encoder labels and writes nothing. Use a causal or "
            "encoder-decoder student, or a method of labels alone: finetune, distill."
        )


def setting_problems(base: Any, tokenizer: Any, kind: str, task: Task, training: TrainingConfig) -> Iterator[str]:
    """What of the training settings a model cannot do."""
    context, longest = context_length(base), training.max_input_tokens
    read = "training.max_input_tokens"
    if kind == "causal":
        longest, read = longest + training.max_target_tokens, f"{read} and max_target_tokens together"
    if context is not None and longest > context:
        yield f"it reads {context} tokens at most, and {read} are {longest}. Lower them to at most that."
    if training.chat and (kind != "causal" or not getattr(tokenizer, "chat_template", None)):
        yield "training.chat is true, and the model has no chat template. Set it to false."
    elif kind == "causal" and (around := Frame(tokenizer, task, training.chat).tokens) >= training.max_input_tokens:
        yield (
            f"training.max_input_tokens ({training.max_input_tokens}) leaves no room for a text: the words around it take {around} "
            "tokens. Raise it."
        )
    part = training.finetune
    if part.last_layers or part.lora:
        problem = partial_problem(skeleton(base, kind), part.last_layers, part.lora.targets if part.lora else None)
        if problem:
            yield problem
