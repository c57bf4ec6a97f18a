"""Checks across the blocks of a study."""

from __future__ import annotations

from typing import Any

from cotd.data.config import DataConfig
from cotd.errors import nearest
from cotd.study.grid import GridConfig
from cotd.teachers.config import TeacherConfig
from cotd.teachers.imported_config import ImportedConfig
from cotd.training.methods import METHODS

# Size name → model, where a study names none.
SIZES = {
    "tiny": "embedded:t5-mini",
    "small": "google/t5-v1_1-small",
    "base": "google/t5-v1_1-base",
    "large": "google/t5-v1_1-large",
}


def source_problems(answers: ImportedConfig, data: DataConfig) -> list[str]:
    """What of a file of answers does not go with the reviews."""
    if not answers.files(data):
        return [f"teacher.answers.source is missing: data.source '{data.where}' is no file that could hold the answers too"]
    of_reviews = [data.source] if isinstance(data.source, str) else data.source.values()
    if (
        set(answers.files(data)) & set(of_reviews)
        and answers.columns.label is not None
        and answers.columns.label == data.columns.label
    ):
        return [
            f"teacher.answers.columns.label and data.columns.label are one column, '{data.columns.label}': the teacher would be "
            "scored on its own labels. Name the column of the labels that it gave, and the one of gold labels (null: none)"
        ]
    return []


def rationale_problems(teacher: TeacherConfig, grid: GridConfig) -> list[str]:
    """What of a study needs the rationales that were written with the labels of its answers, which have none."""
    if teacher.answers is None or teacher.answers.columns.label is None or teacher.answers.columns.rationale is not None:
        return []
    needing = [f"method '{method}'" for method in grid.all_values("method") if METHODS[method].rationale == "own"]
    needing += ["teacher.held_out_rationales"] * teacher.held_out_rationales
    if not needing:
        return []
    return [
        f"{', '.join(needing)}: for rationales that were written with the labels, and no column of them is named "
        "(teacher.answers.columns.rationale)"
    ]


def size_problems(plain: dict[str, Any]) -> list[str]:
    """Unknown sizes; also where pydantic stops before it looks: a validator of the whole runs only when every part is sound."""
    grid, sizes = plain.get("grid"), plain.get("sizes") or SIZES
    if not isinstance(grid, dict) or not isinstance(sizes, dict):
        return []
    known, wanted = ", ".join(map(str, sizes)), {"grid.size": grid.get("size")}
    for kind in ("include", "exclude"):
        entries = grid.get(kind) if isinstance(grid.get(kind), list) else []
        wanted |= {f"grid.{kind}.{i}.size": e.get("size") for i, e in enumerate(entries or []) if isinstance(e, dict)}
    resources = plain.get("resources")
    own = resources.get("sizes") if isinstance(resources, dict) else None
    wanted["resources.sizes"] = list(own) if isinstance(own, dict) else None
    return [
        f"{where} '{size}' is not in sizes ({known}).{nearest(size, list(sizes))}"
        for where, names in wanted.items()
        for size in (names if isinstance(names, list) else [names])
        if size is not None and size not in sizes
    ]
