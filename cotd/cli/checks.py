"""What is looked at before anything expensive starts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cotd.errors import CotdError


def refuse(*problems: tuple[bool, str]) -> None:
    """Raises a CotdError of the problems that there are."""
    if found := [message for there, message in problems if there]:
        raise CotdError(*found)


def require_all(*checks: Callable[[], Any]) -> None:
    """Makes every check, and raises what they found as one CotdError."""
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except CotdError as error:
            problems += error.problems
    if problems:
        raise CotdError(*problems)


def tracking_store(given: str | None) -> str:
    """The MLflow store that commands without a study use."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('runs').absolute() / 'mlflow.db'}"


def check_student(student: str, tracking_uri: str) -> None:
    """Raises a CotdError if there is no such student, before any worker starts."""
    from cotd.storage.tracking_store import use_tracking
    from cotd.students.base_models import CARD, model_advice, resolve_model
    from cotd.students.hub import fetch_student

    if tracking_uri.startswith("sqlite:///") and student.startswith("models:/"):
        database = Path(tracking_uri.removeprefix("sqlite:///"))
        if not database.is_file():
            raise CotdError(
                f"no MLflow database '{database}'. Run `cotd promote CONFIG` first, or name the store: --tracking-uri."
            )
    use_tracking(tracking_uri)
    folder = Path(resolve_model(student))
    if not folder.is_dir():
        folder = Path(fetch_student(str(folder), CARD, model_advice(str(folder))))
    if not (folder / CARD).is_file():
        raise CotdError(f"'{student}' is not a trained student: it has no {CARD}. Train one with `cotd sweep`.")
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    if card.get("rationale_as_input"):
        raise CotdError(
            f"'{student}' was trained by '{card.get('method')}': it reads the teacher's rationale beside each review, and "
            "answers nothing without one. Name a student of another method."
        )
