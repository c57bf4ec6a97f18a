"""Checks of a command's arguments, before anything expensive starts."""

from __future__ import annotations

from collections.abc import Callable
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
