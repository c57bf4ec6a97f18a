"""The command line. Commands are plain functions, a file a subject; each imports what it needs when it is called."""

# ruff: noqa: I001  the order of imports is that of `cotd --help`

from __future__ import annotations

from cotd.cli import doctor, assets, study, pretrain, serving, predict, students
from cotd.cli.app import app, main

__all__ = ["app", "assets", "doctor", "main", "predict", "pretrain", "serving", "students", "study"]
