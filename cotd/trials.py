"""A trial: one student trained one way. Its identity, its folder, and the grid of a study.

A trial's id is a hash of what is trained on what, never of where: any machine finds it finished. Its folder on the
study's storage is the truth:

    trial.json           what the trial is (and the study's resolved configuration)
    metrics.jsonl        one line for each validation score, as it is made
    system_metrics.jsonl one line for each sample of the worker's load
    checkpoints/         while training; removed when done
    student/             the selected student
    predictions.parquet  on the test split
    result.json          the final metrics; written last, so that its presence means done
    error.txt            the traceback of a failed attempt
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.config import StudyConfig, TrainingConfig, digest
from cotd.methods import METHODS
from cotd.statistics import share


@dataclass(frozen=True)
class Trial:
    """One cell of the grid.

    Attributes:
        model: the base model that `size` names.
        base_digest, reviews_digest, annotations_digest: content digests of what is trained; the last is None for a
            method that needs no annotations, so that another teacher does not make `finetune` train again.
    """

    method: str
    fraction: float
    size: str
    seed: int
    model: str
    training: TrainingConfig
    task: str
    base_digest: str
    reviews_digest: str
    annotations_digest: str | None

    @cached_property
    def id(self) -> str:
        identity = self.to_dict()
        del identity["model"], identity["size"]  # names; base_digest is what they name
        return digest(identity)

    @property
    def title(self) -> str:
        """A name a person can read, for MLflow and tables."""
        return f"{self.method} · {share(self.fraction)} · {self.size} · seed {self.seed}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "training": self.training.model_dump(), "fraction": float(self.fraction)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Trial:
        return cls(**{**plain, "training": TrainingConfig(**plain["training"])})


class TrialFolder:
    """The files of one trial."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.system_metrics = path / "system_metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.student = path / "student"
        self.predictions = path / "predictions.parquet"
        self.error = path / "error.txt"
        self._result = path / "result.json"
        self._trial = path / "trial.json"

    @property
    def done(self) -> bool:
        return self._result.is_file()

    def result(self) -> dict[str, Any]:
        return json.loads(self._result.read_text(encoding="utf-8"))

    def period(self) -> tuple[int | None, int | None]:
        """When the attempt that finished began and ended, in milliseconds since 1970; None and None where none has."""
        if not self.done:
            return None, None
        ended = self._result.stat().st_mtime
        return int((ended - self.result().get("seconds", 0)) * 1000), int(ended * 1000)

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(self._result, result)

    def trial(self) -> Trial:
        return Trial.from_dict(json.loads(self._trial.read_text(encoding="utf-8"))["trial"])

    def config(self) -> dict[str, Any]:
        return json.loads(self._trial.read_text(encoding="utf-8"))["config"]

    def write_trial(self, trial: Trial, config: StudyConfig) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._trial, {"trial": trial.to_dict(), "config": config.model_dump()})

    def curve(self) -> list[dict[str, float]]:
        """The validation scores so far, in the order of their steps; a line cut off by a kill is left out."""
        if not self.metrics.is_file():
            return []
        by_step: dict[int, dict[str, float]] = {}
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                point = json.loads(line)
            except json.JSONDecodeError:
                continue
            by_step[int(point["step"])] = point
        return [by_step[s] for s in sorted(by_step)]


def write_json(path: Path, value: Any) -> None:
    """Writes to a temporary name and renames, so that a reader never sees half a file."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
    scratch.replace(path)


def plan_trials(
    config: StudyConfig,
    base_digests: dict[str, str],
    reviews_digest: str,
    annotations_digest: str | None,
    rationales_digest: str | None = None,
) -> list[Trial]:
    """Every cell of the study's grid, the most expensive first, so that a parallel sweep has a short tail.

    Args:
        base_digests: size → content digest of its base model.
        rationales_digest: of the teacher's rationales of validation and test reviews, for methods that read them.
    """
    read = digest([annotations_digest, rationales_digest])
    grid = config.grid
    trials = {}
    for method, fraction, size, seed in itertools.product(grid.method, grid.fraction, grid.size, grid.seed):
        trial = Trial(
            method=method, fraction=float(fraction), size=size, seed=seed, model=config.sizes[size],
            training=config.training, task=config.data.task, base_digest=base_digests[size], reviews_digest=reviews_digest,
            annotations_digest=(
                read if METHODS[method].reads_rationales else annotations_digest if METHODS[method].needs_annotations else None
            ),
        )  # fmt: skip
        trials[trial.id] = trial
    sizes = list(config.sizes)
    return sorted(
        trials.values(),
        key=lambda t: (-sizes.index(t.size), METHODS[t.method].rationale is None, -t.fraction, t.seed, t.method),
    )


def select_fraction(train: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """The first `fraction` of the training reviews, at least one.

    The Review table's order is a hash of the id, so this is a pseudo-random sample, the same for every method and
    seed, and smaller fractions are nested in larger ones.
    """
    return train.head(max(1, round(len(train) * fraction)))
