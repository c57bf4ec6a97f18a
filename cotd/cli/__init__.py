"""The command line. Commands are plain functions, a file a subject; each imports what it needs when it is called."""

# ruff: noqa: I001  the order of imports is that of the commands in `cotd --help`, which has groups last

from __future__ import annotations

from cotd.cli import doctor, study, init, configs, serving, predict, students, push, assets
from cotd.cli.app import app, main

__all__ = ["app", "assets", "configs", "doctor", "init", "main", "predict", "push", "serving", "students", "study"]
