"""Checks across the blocks of a study: what is wrong with each pair, as sentences."""

from __future__ import annotations

from typing import Any

from cotd.data.config import DataConfig
from cotd.errors import nearest
from cotd.study.grid import GridConfig
from cotd.study.search import SearchConfig
from cotd.tasks.base import Task
from cotd.teachers.config import STAGE, ImportedConfig, TeacherConfig
from cotd.training.config import TrainingConfig
from cotd.training.methods import METHODS


def teacher_problems(teacher: TeacherConfig, grid: GridConfig, data: DataConfig, task: Task) -> list[str]:
    """Problems of what the teacher writes, or a file holds, with the task and what the grid learns from."""
    unknown_probabilities = probability_problems(teacher, grid, task)
    if teacher.imported:
        return [*source_problems(teacher.imported, data), *rationale_problems(teacher, grid), *unknown_probabilities]
    asked = "strategy" in teacher.model_fields_set or any(METHODS[m].learns_teacher_labels for m in grid.all_values("method"))
    if asked and (problems := [*unknown_probabilities, *scoring_problems(teacher, task)]):
        return problems
    if problems := rationale_problems(teacher, grid):
        return problems
    samples = max(grid.all_values("samples"), default=0)
    if samples <= teacher.samples:
        return []
    return [
        f"grid.samples has {samples}, and the teacher writes {teacher.samples} an example (teacher.samples). Raise teacher.samples"
    ]


def stage_problems(teacher: TeacherConfig, variant: str | None) -> list[str]:
    """Why the student of another stage cannot be the teacher."""
    if teacher.strategy != "student" or not teacher.model.startswith(STAGE):
        return []
    stage = teacher.model.removeprefix(STAGE)
    if variant is None:
        return [f"teacher.model '{teacher.model}' is of a file with stages, and this study has none. Name a model"]
    return [f"teacher.model '{teacher.model}' is the stage itself: name an earlier one"] if stage == variant else []


def probability_problems(teacher: TeacherConfig, grid: GridConfig, task: Task) -> list[str]:
    """Why a teacher cannot give the probabilities that methods of the grid learn."""
    needing = [method for method in grid.all_values("method") if METHODS[method].learns_probabilities]
    if not needing:
        return []
    wanted = f"method '{needing[0]}' learns the probability of every answer"
    if task.free_answers:
        return [f"{wanted}, and those of task '{task.name}' are free ({task.kind}). Use distill"]
    if teacher.imported is None:
        if teacher.strategy in ("score_then_explain", "student"):
            return []
        return [f"{wanted}, which a chain of thought does not give. Set teacher.strategy: score_then_explain, or use distill"]
    if teacher.imported.columns.label_probability is None:
        return [
            f"{wanted}: name the column of the label's probability, teacher.imported.columns.label_probability, or use distill"
        ]
    if len(task.labels) != 2:
        return [
            f"{wanted}, and the label's alone, teacher.imported.columns.label_probability, tells them of two labels only: task "
            f"'{task.name}' has {len(task.labels) or 'other options for each example'}. Use distill"
        ]
    return []


def scoring_problems(teacher: TeacherConfig, task: Task) -> list[str]:
    """What of a task cannot be scored, or calibrated as configured."""
    if teacher.strategy != "score_then_explain":
        return []
    if task.free_answers:
        return [
            f"teacher.strategy score_then_explain scores a fixed set of answers, and those of task '{task.name}' are free "
            f"({task.kind}). Set teacher.strategy: chain_of_thought"
        ]
    if teacher.api and teacher.api.server == "openai" and len(task.labels) > teacher.api.top_logprobs:
        return [
            f"teacher.api.top_logprobs ({teacher.api.top_logprobs}) is less than the {len(task.labels)} labels of task "
            f"'{task.name}'. Raise it if the endpoint allows that, or set teacher.strategy: chain_of_thought"
        ]
    prior, key = teacher.calibration.prior, "teacher.calibration.prior"
    if prior is None:
        return []
    if task.needs_choices:
        return [
            f"{key} is of labels, and each example of task '{task.name}' has options of its own: leave it out (equal shares)"
        ]
    if isinstance(prior, float):
        several = len(task.labels) > 2
        return [f"{key} is a share, and task '{task.name}' has {len(task.labels)} labels: name the share of each"] * several
    problems = []
    if set(prior) != set(task.labels):
        problems.append(f"{key} must name exactly {', '.join(task.labels)}, not {', '.join(prior)}")
    elif abs(sum(prior.values()) - 1) > 0.001:
        problems.append(f"{key}: the shares add up to {sum(prior.values()):g}, not to 1")
    return problems


def source_problems(imported: ImportedConfig, data: DataConfig) -> list[str]:
    """Problems of a file of the teacher's labels and rationales with the study's data."""
    files = imported.files(data)
    if not files:
        return [f"teacher.imported.source is missing: data.source '{data.source_name}' is not a file. Name the teacher's file"]
    data_files = [data.source] if isinstance(data.source, str) else data.source.values()
    label = imported.columns.label
    if label is None or label != data.columns.label or not set(files) & set(data_files):
        return []
    return [
        f"teacher.imported.columns.label and data.columns.label are one column, '{label}': the teacher would be scored on its own "
        "labels. Name the column of the teacher's labels, and the one of gold labels (null: none)"
    ]


def rationale_problems(teacher: TeacherConfig, grid: GridConfig) -> list[str]:
    """What needs rationales, if the teacher is to write none, or its file has labels alone."""
    if not teacher.rationales:
        methods = [m for m in grid.all_values("method") if any(part.rationale for part in METHODS[m].parts)]
        return [
            f"method '{m}' learns rationales, and teacher.rationales is false. Set it to true, or use distill" for m in methods
        ]
    if teacher.imported is None or teacher.imported.columns.label is None or teacher.imported.columns.rationale is not None:
        return []
    needing = [f"method '{method}'" for method in grid.all_values("method") if METHODS[method].rationale == "own"]
    needing += ["teacher.held_out_rationales"] * teacher.held_out_rationales
    if not needing:
        return []
    return [
        f"{', '.join(needing)}: needs rationales written with the labels. Name their column: teacher.imported.columns.rationale"
    ]


def search_problems(search: SearchConfig, grid: GridConfig, training: TrainingConfig) -> list[str]:
    """Problems of a search with the one student that it tries settings of."""
    problems = []
    if (cells := grid.count_all()) > 1:
        problems.append(
            f"search tries settings of one student, and the grid has {cells} combinations: name one method, fraction, size and seed"
        )
    if search.asha and search.asha.grace_steps > training.steps:
        problems.append(
            f"search.asha.grace_steps ({search.asha.grace_steps}) is more than training.steps ({training.steps}): nothing would be "
            "stopped early"
        )
    return problems


def size_problems(plain: dict[str, Any]) -> list[str]:
    """Unknown sizes in a plain study, which may have any other mistake: a model's validator runs only if every part is valid."""
    grid, sizes, resources = plain.get("grid"), plain.get("sizes"), plain.get("resources")
    if not isinstance(grid, dict) or not isinstance(sizes, dict):
        return []
    named = {"grid.size": grid.get("size")}  # where sizes are named → one size or several
    for kind in ("include", "exclude"):
        entries = grid.get(kind) if isinstance(grid.get(kind), list) else []
        named |= {f"grid.{kind}.{i}.size": e.get("size") for i, e in enumerate(entries or []) if isinstance(e, dict)}
    if isinstance(resources, dict) and isinstance(resources.get("sizes"), dict):
        named["resources.sizes"] = list(resources["sizes"])
    return [
        f"{where} '{size}' is not in sizes ({', '.join(map(str, sizes))}).{nearest(size, sizes)}"
        for where, names in named.items()
        for size in (names if isinstance(names, list) else [names])
        if size is not None and size not in list(sizes)  # a list: a size may be anything, also what cannot be a key
    ]
