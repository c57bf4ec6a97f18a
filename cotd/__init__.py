"""Chain-of-thought distillation: reviews, annotations, training pairs, students."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cotd.errors import CotdError as CotdError
    from cotd.students.student import Prediction as Prediction
    from cotd.students.student import Student as Student


__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`cotd.Student`, `cotd.Prediction` and `cotd.CotdError`, imported when they are first asked for."""
    import importlib

    home = {"Student": "cotd.students.student", "Prediction": "cotd.students.student", "CotdError": "cotd.errors"}.get(name)
    if home is None:
        raise AttributeError(f"module 'cotd' has no attribute '{name}'")
    return getattr(importlib.import_module(home), name)
