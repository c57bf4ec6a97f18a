"""A study's configuration: YAML plus `key=value` overrides, checked as a whole before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from cotd.config.model import ConfigModel, validate_config
from cotd.config.overrides import apply_override, read_yaml
from cotd.config.variants import choose_variant, chosen_variants, other_variants, stage_names
from cotd.data.config import DataConfig
from cotd.errors import CotdError
from cotd.storage.tracking_store import default_tracking_uri
from cotd.storage.urls import is_remote, open_remote
from cotd.storage.working_copy import copy_folder
from cotd.study.checks import search_problems, size_problems, stage_problems, teacher_problems
from cotd.study.grid import GridConfig
from cotd.study.resources import ResourcesConfig
from cotd.study.search import SearchConfig
from cotd.tasks.base import Task
from cotd.tasks.registry import get_task, parse_task
from cotd.teachers.config import STAGE, TeacherConfig
from cotd.training.config import TrainingConfig
from cotd.utils.urls import without_credentials

# Size name → model, where a study names none.
SIZES = {
    "tiny": "embedded:t5-mini",
    "minilm": "embedded:minilm-l6-v2",
    "small": "google/t5-v1_1-small",
    "smol": "embedded:smollm2-135m-instruct",
    "base": "google/t5-v1_1-base",
    "large": "google/t5-v1_1-large",
}


class TrackingConfig(ConfigModel):
    """Where a study's runs and models are. It is here because `cotd.tracking` builds on studies."""

    uri: str | None = Field(None, description="MLflow tracking URI; null: MLFLOW_TRACKING_URI, else runs/mlflow.db")
    experiment: str | None = Field(None, description="null: the study's name")
    registered_model: str = "cotd-student"
    models: int = Field(
        3, ge=0, description="students logged as MLflow models: the best by validation; the champion is one in any case"
    )

    @field_validator("registered_model")
    @classmethod
    def can_be_registered(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w .-]*", name):
            raise ValueError(
                "a registered model's name has letters, digits, spaces, dots, dashes and underscores, and no slash"
            )
        return name

    @field_validator("uri")
    @classmethod
    def uri_without_credentials(cls, uri: str | None) -> str | None:
        return without_credentials(uri)


class StudyConfig(ConfigModel):
    """One study: what is annotated by whom, which students are trained, and where the results go."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    variant: str | None = Field(None, description="which of the file's `variants` this is")
    task: SerializeAsAny[Task] = Field(
        default_factory=lambda: get_task("sentiment"),
        description="a built-in task (sentiment, nli, commonsense_qa, svamp), a task file, or a task: name, kind, labels, …",
    )
    data: DataConfig
    teacher: TeacherConfig = TeacherConfig()
    sizes: dict[str, str] = Field(
        default_factory=SIZES.copy, description="size name → model: embedded:NAME, a local directory, or a hub id"
    )
    grid: GridConfig
    training: TrainingConfig = TrainingConfig()
    search: SearchConfig | None = Field(None, description="training settings to try, in place of those of `training`")
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    storage: str = Field("runs", description="the folder that holds the study's folder, or an fsspec URL like s3://bucket/runs")

    @model_validator(mode="after")
    def blocks_agree(self) -> StudyConfig:
        problems = size_problems(self.model_dump(include={"grid", "sizes", "resources"}))
        problems += teacher_problems(self.teacher, self.grid, self.data, self.task)
        problems += stage_problems(self.teacher, self.variant)
        problems += search_problems(self.search, self.grid, self.training) if self.search else []
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @field_validator("task", mode="before")
    @classmethod
    def known_task(cls, plain: Any) -> Task:
        try:
            return parse_task(plain)
        except CotdError as error:
            raise ValueError("; ".join(p.removeprefix("task: ") for p in error.problems)) from error

    @field_validator("storage")
    @classmethod
    def storage_can_be_used(cls, storage: str) -> str:
        without_credentials(storage)
        if is_remote(storage):
            try:
                open_remote(storage)
            except CotdError as error:
                raise ValueError(str(error)) from error
        return storage

    @property
    def remote(self) -> str | None:
        """The fsspec URL of the study's folder, of which `directory` is a working copy; None if `storage` is a folder."""
        return f"{self.storage.rstrip('/')}/{self.name}" if is_remote(self.storage) else None

    @property
    def local_storage(self) -> Path:
        """The folder for what studies share, absolute: `storage`, or `runs` if that is a URL."""
        return Path("runs" if self.remote else self.storage).expanduser().absolute()

    @property
    def directory(self) -> Path:
        """The study's own folder, absolute: trials run in other working directories."""
        return copy_folder(self.remote) if self.remote else self.local_storage / self.name

    def tracking_uri(self) -> str:
        """The MLflow store of the study's runs."""
        return self.tracking.uri or default_tracking_uri(self.local_storage)


def load_config(path: str | Path, overrides: list[str] | None = None) -> StudyConfig:
    """Reads a study's YAML, chooses its variant, applies `a.b=value` overrides (values are YAML) and checks the whole.

    Of a file with `stages` this is the last stage, unless another variant is chosen; `load_stages` reads all of them.

    Raises:
        CotdError: with every problem found, each naming its key; also those of variants that were not chosen.

    Example:
        >>> study = cotd.load_config("mine.yaml", ["training.steps=4", "training.eval_every=2"])
        >>> study.name, study.training.steps
        ('mine', 4)
    """
    written = read_yaml(path)
    plain, rest = choose_variant(written, overrides or [], str(path))
    for override in rest:
        apply_override(plain, override)
    problems: dict[str, str] = {}  # problem → the same with its place: a mistake in all variants is reported once
    for where, study in {str(path): plain, **other_variants(written, str(path), plain.get("variant"))}.items():
        try:
            check_config(study, where)
        except CotdError as error:
            for problem in error.problems:
                problems.setdefault(problem.removeprefix(f"{where}: "), problem)
    if problems:
        raise CotdError(*problems.values())
    return check_config(plain, str(path))


def load_stages(path: str | Path, overrides: list[str] | None = None) -> list[StudyConfig]:
    """The studies of a file's stages, in their order; of a file without stages, or where a variant is chosen, the one study.

    Raises:
        CotdError: as `load_config`; a stage is taught by one that does not come before it, or they do not share a storage.

    Example:
        >>> [stage.name for stage in cotd.load_stages("mine.yaml")]
        ['mine']
    """
    overrides = overrides or []
    names = [] if chosen_variants(overrides) else stage_names(read_yaml(path), str(path))
    if not names:
        return [load_config(path, overrides)]
    stages = [load_config(path, [*overrides, f"variant={name}"]) for name in names]
    problems = [
        f"{path}: variants.{stage.variant}: teacher.model '{stage.teacher.model}' does not come before it. Stages: {', '.join(names)}."
        for n, stage in enumerate(stages)
        if stage.teacher.model.startswith(STAGE) and stage.teacher.model.removeprefix(STAGE) not in names[:n]
    ]
    if len({stage.name for stage in stages}) < len(stages):
        problems.append(f"{path}: override name=… gives all stages one folder. Leave it out, or choose a variant.")
    if len({stage.storage for stage in stages}) > 1:
        problems.append(
            f"{path}: storage: stages share one, in which they find one another. Write it once, outside of variants."
        )
    if problems:
        raise CotdError(*problems)
    return stages


def check_config(plain: dict[str, Any], where: str) -> StudyConfig:
    """A study's configuration from a plain dict.

    Raises:
        CotdError: all problems at once; unknown keys come with the nearest known one.
    """
    return validate_config(StudyConfig, plain, where, lambda p: size_problems({"sizes": SIZES, **p}))
