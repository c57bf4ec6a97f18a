"""Chain-of-thought distillation: a teacher annotates examples, small students learn from it, the best one is served.

The whole of it, in a notebook:

    import cotd

    study = cotd.load_config("tune_configs/demo.yaml")
    cotd.annotate(study)
    cotd.sweep(study)
    print(cotd.promote(study).sentences)
    student = cotd.Student.load("models:/cotd-student@champion")
    print(student.predict(["A warm and funny film."]))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cotd.errors import CotdError as CotdError
    from cotd.students.student import Prediction as Prediction
    from cotd.students.student import Student as Student
    from cotd.study.config import load_config as load_config
    from cotd.study.config import load_stages as load_stages
    from cotd.tasks.base import Task as Task
    from cotd.training.methods import METHODS as METHODS
    from pipelines.annotate.run import annotate as annotate
    from pipelines.prepare import prepare as prepare
    from pipelines.promote import promote as promote
    from pipelines.report.run import report as report
    from pipelines.stages import run_stages as run_stages
    from pipelines.sweep.run import sweep as sweep
    from pipelines.train import train as train

__version__ = "0.1.0"

# Public name → the module that has it. A name is imported when it is first used: PyTorch and Ray take seconds.
_HOMES = {
    "load_config": "cotd.study.config",
    "load_stages": "cotd.study.config",
    "prepare": "pipelines.prepare",
    "annotate": "pipelines.annotate.run",
    "train": "pipelines.train",
    "sweep": "pipelines.sweep.run",
    "run_stages": "pipelines.stages",
    "report": "pipelines.report.run",
    "promote": "pipelines.promote",
    "Student": "cotd.students.student",
    "Prediction": "cotd.students.student",
    "Task": "cotd.tasks.base",
    "METHODS": "cotd.training.methods",
    "CotdError": "cotd.errors",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'cotd' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
