"""Checks of a command's arguments, before anything expensive starts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from cotd.errors import CotdError


def require_all(*checks: Callable[[], Any]) -> None:
    """Runs every check, and raises the problems of all as one CotdError."""
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except CotdError as error:
            problems += error.problems
    if problems:
        raise CotdError(*problems)


Students = tuple[str, str | None, str]  # a student, the larger one of a cascade or None, and what is handed on to it


def check_students(students: Students, tracking_uri: str) -> None:
    """Raises a CotdError unless `check_student` passes for each, and the two can be a cascade."""
    from cotd.evaluation.cascade import choose_threshold, parse_below

    student, larger, below = students
    if larger is None:
        check_student(student, tracking_uri)
        return
    both = (student, larger)
    require_all(lambda: parse_below(below), *(partial(check_student, name, tracking_uri) for name in both))
    choose_threshold(below, *both)


def check_student(student: str, tracking_uri: str) -> None:
    """Raises a CotdError unless the student exists and needs no more than texts."""
    from cotd.storage.tracking_store import require_database, use_tracking
    from cotd.students.base_models import find_student

    if student.startswith("models:/"):
        require_database(tracking_uri)
    use_tracking(tracking_uri)
    _, card = find_student(student)
    if card.get("rationale_as_input"):
        raise CotdError(
            f"'{student}' was trained by '{card.get('method')}': it needs the teacher's rationale with each example. Name a student "
            "of another method."
        )
