"""Stages: variants of one file that follow one another, and the student of one that teaches the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cotd.errors import CotdError
from cotd.storage.working_copy import copy_of, is_small
from cotd.students.base_models import find_student
from cotd.study.config import StudyConfig
from cotd.teachers.config import STAGE
from cotd.training.folder import TrialFolder
from cotd.utils.files import read_json, write_json

BEST = "best.json"


def stage_study(config: StudyConfig) -> StudyConfig | None:
    """The study of the earlier stage whose best student teaches; None if the teacher is no stage's.

    It has that study's name and folder, and nothing else of it.
    """
    if config.teacher.strategy != "student" or not config.teacher.model.startswith(STAGE):
        return None
    stage = config.teacher.model.removeprefix(STAGE)
    name = config.name.removesuffix(f"-{config.variant}")
    return config.model_copy(update={"name": f"{name}-{stage}", "variant": stage})


def write_best(config: StudyConfig, best: dict[str, Any] | None) -> None:
    """Notes the best student that a sweep has found, for the stages that it teaches; None if it has found none."""
    path = config.directory / BEST
    if best is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, best)


def teacher_folder(config: StudyConfig) -> Path | None:
    """The folder of the student that teaches a study; None if its teacher is none.

    Raises:
        CotdError: there is no such student, or no finished one of the stage that it is to come from.
    """
    if config.teacher.strategy != "student":
        return None
    stage = stage_study(config)
    return find_student(config.teacher.model)[0] if stage is None else best_student(stage, config.name)


def waits_for_teacher(config: StudyConfig) -> bool:
    """Whether the earlier stage whose best student is to teach has none yet."""
    if stage_study(config) is None:
        return False
    try:
        teacher_folder(config)
    except CotdError:
        return True
    return False


def best_student(stage: StudyConfig, wanted_by: str) -> Path:
    """The folder of the student that was the best by validation when a stage was last swept."""
    copy = copy_of(stage.remote, stage.directory) if stage.remote else None
    if copy:
        copy.pull(select=is_small)
    try:
        folder = TrialFolder(stage.directory / "trials" / read_json(stage.directory / BEST)["trial_id"])
    except (OSError, ValueError, KeyError) as error:
        raise CotdError(
            f"{wanted_by} is taught by the best student of stage '{stage.variant}', and {stage.name} has no finished student: "
            f"{stage.directory}. Run `cotd sweep CONFIG`, which runs all stages in order."
        ) from error
    if copy:
        copy.pull(f"trials/{folder.path.name}/student")
    return find_student(str(folder.student))[0]
