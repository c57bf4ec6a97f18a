"""Checks between a file of answers and the rest of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cotd.training.methods import METHODS

if TYPE_CHECKING:
    from cotd.data.config import DataConfig
    from cotd.study.grid import GridConfig
    from cotd.teachers.config import TeacherConfig

from cotd.teachers.imported_config import AnswersConfig


def source_problems(answers: AnswersConfig, data: DataConfig) -> list[str]:
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
