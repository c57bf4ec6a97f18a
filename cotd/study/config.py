"""A study's configuration: YAML plus `key=value` overrides, checked as a whole before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from cotd.config.model import ConfigModel, validate_config
from cotd.config.overrides import apply_override, read_yaml
from cotd.config.variants import all_variants, choose_variant
from cotd.data.config import DataConfig
from cotd.errors import CotdError
from cotd.storage.urls import is_remote, open_remote
from cotd.storage.working_copy import copy_folder
from cotd.study.checks import SIZES, rationale_problems, size_problems, source_problems
from cotd.study.grid import GridConfig
from cotd.study.resources import ResourcesConfig
from cotd.study.search import SearchConfig
from cotd.teachers.config import TeacherConfig
from cotd.training.config import TrainingConfig


class TrackingConfig(ConfigModel):
    uri: str | None = Field(None, description="MLflow tracking URI; null: MLFLOW_TRACKING_URI, else runs/mlflow.db")
    experiment: str | None = Field(None, description="null: the study's name")
    registered_model: str = "cotd-student"


class StudyConfig(ConfigModel):
    """One study: what is annotated by whom, which students are trained, and where the results go."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    variant: str | None = Field(None, description="which of the file's `variants` this is")
    data: DataConfig
    teacher: TeacherConfig = TeacherConfig()
    sizes: dict[str, str] = Field(
        default_factory=SIZES.copy,
        description="size name → model: embedded:NAME, a local directory, or a hub id",
    )
    grid: GridConfig
    training: TrainingConfig = TrainingConfig()
    search: SearchConfig | None = Field(None, description="training settings to try, in place of those of `training`")
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    storage: str = Field("runs", description="the folder that holds the study's folder, or an fsspec URL like s3://bucket/runs")

    @model_validator(mode="after")
    def parts_agree(self) -> StudyConfig:
        problems = size_problems(self.model_dump(include={"grid", "sizes", "resources"}))
        most = max(self.grid.all_values("samples"), default=0)
        if most > self.teacher.samples and not self.teacher.answers:
            problems.append(
                f"grid.samples has {most}, and the teacher writes {self.teacher.samples} a review (teacher.samples)"
            )
        if self.teacher.answers:
            problems += source_problems(self.teacher.answers, self.data)
            problems += rationale_problems(self.teacher, self.grid)
        if self.search and (cells := self.grid.count_all()) > 1:
            problems.append(
                f"search tries settings of one student, and the grid has {cells} combinations: name one method, fraction, size "
                "and seed"
            )
        if self.search and self.search.asha and self.search.asha.grace_steps > self.training.steps:
            problems.append(
                f"search.asha.grace_steps ({self.search.asha.grace_steps}) is more than training.steps ({self.training.steps}), "
                "so that nothing would be given up early"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @field_validator("storage")
    @classmethod
    def storage_can_be_used(cls, storage: str) -> str:
        if is_remote(storage):
            try:
                open_remote(storage)
            except CotdError as error:
                raise ValueError(str(error)) from error
        return storage

    @property
    def remote(self) -> str | None:
        """The fsspec URL of the study's folder, of which `directory` is a working copy; None where it is a folder itself."""
        return f"{self.storage.rstrip('/')}/{self.name}" if is_remote(self.storage) else None

    @property
    def local_storage(self) -> Path:
        """The folder for what is kept beside studies, absolute: `storage`, or `runs` where that is a URL."""
        return Path("runs" if self.remote else self.storage).expanduser().absolute()

    @property
    def directory(self) -> Path:
        """The study's own folder, absolute: trials run in other working directories."""
        return copy_folder(self.remote) if self.remote else self.local_storage / self.name

    def tracking_uri(self) -> str:
        import os

        default = f"sqlite:///{self.local_storage / 'mlflow.db'}"
        return self.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def load_config(path: str | Path, overrides: list[str] | None = None) -> StudyConfig:
    """Reads a study's YAML, chooses its variant, applies `a.b=value` overrides (values are YAML) and checks the whole.

    Raises:
        CotdError: with every problem found, each naming its key; also those of variants that were not chosen.
    """
    written = read_yaml(path)
    plain, rest = choose_variant(written, overrides or [], str(path))
    for override in rest:
        apply_override(plain, override)
    problems: dict[str, str] = {}  # what is wrong → the same with where: a mistake of all variants is told once
    for where, study in {str(path): plain, **all_variants(written, str(path), plain.get("variant"))}.items():
        try:
            check_config(study, where)
        except CotdError as error:
            found = {p.removeprefix(f"{where}: "): p for p in error.problems}
            problems |= {what: p for what, p in found.items() if what not in problems}
    if problems:
        raise CotdError(*problems.values())
    return check_config(plain, str(path))


def check_config(plain: dict[str, Any], where: str) -> StudyConfig:
    """A StudyConfig of a plain dict.

    Raises:
        CotdError: all problems at once; an unknown key is answered with the nearest known one.
    """
    return validate_config(StudyConfig, plain, where, size_problems)
