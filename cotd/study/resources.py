"""What trials ask Ray for: the `resources` block of a study. It does not change what is trained."""

from __future__ import annotations

from pydantic import Field, model_validator

from cotd.config.model import ConfigModel


class SizeResources(ConfigModel):
    """What trials of one size of student ask for; null: as all others."""

    workers: int | None = Field(None, ge=1)
    cpus: float | None = Field(None, gt=0)
    gpus: float | None = Field(None, ge=0)


class ResourcesConfig(ConfigModel):
    """What each trial asks Ray for; fractions are packed onto one device."""

    workers: int = Field(
        1, ge=1, description="processes that train a trial together, each with these cpus and gpus; the student is the same"
    )
    cpus: float = Field(1, gt=0)
    gpus: float | None = Field(
        None, ge=0, description="null: one if Ray has GPUs, else none; a fraction, such as 0.25, lets small students share one"
    )
    sizes: dict[str, SizeResources] = Field(
        default_factory=dict, description="for students of some sizes, as in {large: {workers: 4, gpus: 1, cpus: 8}}"
    )
    max_concurrent: int | None = Field(None, ge=1)
    max_failures: int = Field(1, ge=0, description="times a failed trial is tried again")

    def of(self, size: str) -> ResourcesConfig:
        """The resources of one size's trials."""
        changes = self.sizes[size].model_dump(exclude_none=True) if size in self.sizes else {}
        return self.model_copy(update={**changes, "sizes": {}})

    @model_validator(mode="after")
    def workers_take_whole_gpus(self) -> ResourcesConfig:
        problems = [
            f"{where}{block.workers} workers that train together take a GPU each (gpus: 1) or none (gpus: 0), not {block.gpus:g}"
            for where, block in {"": self, **{f"sizes.{size}: ": self.of(size) for size in self.sizes}}.items()
            if block.workers > 1 and block.gpus not in (None, 0, 1)
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self
