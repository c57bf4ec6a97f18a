"""Checks of a command's arguments, before anything expensive starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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
    from cotd.storage.tracking_store import SQLITE, use_tracking
    from cotd.students.base_models import find_student

    if tracking_uri.startswith(SQLITE) and student.startswith("models:/"):
        database = Path(tracking_uri.removeprefix(SQLITE))
        if not database.is_file():
            raise CotdError(
                f"no MLflow database '{database}'. Run `cotd promote CONFIG` first, or name the store: --tracking-uri."
            )
    use_tracking(tracking_uri)
    _, card = find_student(student)
    if card.get("rationale_as_input"):
        raise CotdError(
            f"'{student}' was trained by '{card.get('method')}': it needs the teacher's rationale with each example. Name a student "
            "of another method."
        )
