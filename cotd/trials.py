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
    pruned.json          of a search's sample that was given up: its last score
    error.txt            the traceback of a failed attempt
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.config import StudyConfig, TrainingConfig, digest
from cotd.grid import Cell, Filters
from cotd.methods import METHODS
from cotd.statistics import share
from cotd.truncation import Truncation

# Settings that mean something to methods alone whose rationales are targets of their own.
RATIONALE_SETTINGS = ("rationale_weight", "rationale_schedule")

# What was trained before there were such settings, and is found by the id that it had then.
BEFORE = {"truncation": "head", "weight_average": None}


@dataclass(frozen=True)
class Trial:
    """One cell of the grid, or one sample of a search.

    Attributes:
        model: the base model that `size` names.
        samples, filters: which of the annotations are learned from: the first n samples of a review, and these filters in
            place of those that were applied when the annotations were made; None: the annotations as they were made.
        varied: what sets this trial apart from others of its method, fraction, size and seed, for people to read: key →
            value. No part of its identity, which the values are.
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
    samples: int | None = None
    filters: Filters | None = None
    varied: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        identity = self.to_dict()
        del identity["model"], identity["size"], identity["varied"]  # names; base_digest is what they name
        for key in ("micro_batch_size", "gradient_checkpointing"):  # how, not what
            del identity["training"][key]
        if not self.shares_encoder:
            del identity["training"]["shared_encoder"]
        if self.training.rationale_schedule == "constant" or not METHODS[self.method].weighs_rationales:
            del identity["training"]["rationale_schedule"]
        identity["training"]["truncation"] = self.truncation
        for key, before in BEFORE.items():
            if identity["training"][key] == before:
                del identity["training"][key]
        for key in ("samples", "filters"):
            if identity[key] is None:
                del identity[key]
        return digest(identity)

    @property
    def shares_encoder(self) -> bool:
        """Whether a review is encoded once for its label and its rationale: only methods that write both apart do."""
        return self.training.shared_encoder and METHODS[self.method].weighs_rationales

    @property
    def truncation(self) -> Truncation:
        """How inputs that are too long are cut: of a rationale with a review after it always the end, so that it stays whole."""
        return "head" if METHODS[self.method].reads_rationales else self.training.truncation

    @property
    def title(self) -> str:
        """A name a person can read, for MLflow and tables."""
        names = [self.method, share(self.fraction), self.size, f"seed {self.seed}", self.arm]
        return " · ".join(name for name in names if name)

    @property
    def arm(self) -> str:
        """What sets this trial apart from others of its method, fraction, size and seed; "" where nothing does."""
        return ", ".join(f"{key} {readable(value)}" for key, value in self.varied.items())

    def cost(self, parameters: float) -> float:
        """How much there is to compute, in a unit of no meaning: tokens times parameters.

        Args:
            parameters: of the base model.
        """
        method, training = METHODS[self.method], self.training
        rationale = training.max_target_tokens if method.writes_rationales else 0
        inputs = training.max_input_tokens * (2 if method.weighs_rationales and not self.shares_encoder else 1)
        return parameters * training.steps * training.batch_size * (inputs + rationale)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "training": self.training.model_dump(), "fraction": float(self.fraction)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Trial:
        return cls(**{**plain, "training": TrainingConfig(**{**BEFORE, **plain["training"]})})


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
        self._pruned = path / "pruned.json"
        self._trial = path / "trial.json"

    @property
    def done(self) -> bool:
        return self._result.is_file()

    @property
    def pruned(self) -> bool:
        """Whether a search has given this sample up, so that it is not trained on."""
        return self._pruned.is_file() and not self.done

    def write_pruned(self, point: dict[str, float]) -> None:
        """Marks the sample as given up after the score `point`, and removes what only going on would need."""
        write_json(self._pruned, point)
        shutil.rmtree(self.checkpoints, ignore_errors=True)

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
        self._pruned.unlink(missing_ok=True)  # it is to be trained, after all where a search had given it up
        write_json(self._trial, {"trial": trial.to_dict(), "config": config.model_dump()})

    def add_point(self, point: dict[str, float]) -> None:
        """Appends a validation score and its time, on a line of its own whatever a killed attempt left."""
        whole = not self.metrics.is_file() or self.metrics.read_bytes()[-1:] in (b"", b"\n")
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + json.dumps({**point, "time": round(time.time(), 3)}) + "\n")

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
    base_digests: Mapping[str, str],
    reviews_digest: str,
    annotations_digest: str | None,
    rationales_digest: str | None = None,
    settings: Sequence[dict[str, Any]] = ({},),
    parameters: Mapping[str, float] | None = None,
) -> list[Trial]:
    """Every cell of the study's grid, the most expensive first, so that a parallel sweep has a short tail.

    Args:
        base_digests: size → content digest of its base model.
        rationales_digest: of the teacher's rationales of validation and test reviews, for methods that read them.
        settings: training keys and values of each sample of a search.
        parameters: size → how large its base model is; where one is missing, sizes count as listed from small to large.
    """
    read = digest([annotations_digest, rationales_digest])
    listed = {size: 10.0**rank for rank, size in enumerate(config.sizes)}
    known = parameters if parameters and all(parameters.get(s) for s in config.grid.all_values("size")) else listed
    trials: dict[str, Trial] = {}
    for cell in config.grid.all_cells():
        method = METHODS[cell.method]
        samples, filters = chosen_annotations(config, cell)
        for drawn in settings:
            varied = {
                k: v for k, v in {**cell.training, **drawn}.items() if k not in RATIONALE_SETTINGS or method.weighs_rationales
            }
            trial = Trial(
                method=cell.method, fraction=cell.fraction, size=cell.size, seed=cell.seed, model=config.sizes[cell.size],
                training=config.training.model_copy(update=varied), task=config.data.task,
                base_digest=base_digests[cell.size], reviews_digest=reviews_digest,
                annotations_digest=(
                    read if method.reads_rationales else annotations_digest if method.needs_annotations else None
                ),
                samples=samples, filters=filters, varied=differing(config, cell, varied),
            )  # fmt: skip
            trials.setdefault(trial.id, trial)
    return sorted(
        trials.values(),
        key=lambda t: (-t.cost(known[t.size]), -t.fraction, t.seed, t.method),
    )


def chosen_annotations(config: StudyConfig, cell: Cell) -> tuple[int | None, Filters | None]:
    """The (samples, filters) of a cell; None for what is as the annotations were made.

    Filters that were applied to all samples are applied anew to the first n: a majority of five must not choose for one.
    """
    if not METHODS[cell.method].needs_annotations:
        return None, None
    samples = None if cell.samples == samples_written(config) else cell.samples
    filters = cell.filters if cell.filters is not None else config.teacher.filters if samples is not None else None
    return samples, None if samples is None and filters == config.teacher.filters else filters


def samples_written(config: StudyConfig) -> int | None:
    """How many samples of a review the teacher was asked for; None of a file of answers, which has as many as it has."""
    return None if config.teacher.answers else config.teacher.samples


def differing(config: StudyConfig, cell: Cell, varied: dict[str, Any]) -> dict[str, Any]:
    """What of a cell is not as most of its study has it: as the grid's only value or, where it names none, the study's block.

    Args:
        varied: training keys and values of the cell that its method heeds.
    """
    grid, teacher = config.grid, config.teacher
    usual = {key: sole(grid.training.get(key), getattr(config.training, key)) for key in varied}
    found = {key: value for key, value in varied.items() if value != usual[key]}
    if METHODS[cell.method].needs_annotations:
        written = samples_written(config)
        samples = cell.samples or written
        if samples != sole(grid.samples, written):
            found["samples"] = samples
        filters = teacher.filters if cell.filters is None else cell.filters
        if filters != sole(grid.filters, teacher.filters):
            found["filters"] = filters
    return found


def sole(values: Sequence[Any] | None, otherwise: Any) -> Any:
    """The only one of the values; `otherwise` where there are several, or none."""
    return values[0] if values and len(values) == 1 else otherwise


def readable(value: Any) -> str:
    """A setting's value as people write it: 0.003, or `length + near_duplicates`."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " + ".join(v if isinstance(v, str) else "".join(v) for v in value) or "none"
    return str(value)


def select_fraction(train: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """The first `fraction` of the training reviews, at least one.

    The Review table's order is a hash of the id, so this is a pseudo-random sample, the same for every method and
    seed, and smaller fractions are nested in larger ones.
    """
    return train.head(fraction_rows(len(train), fraction))


def fraction_rows(rows: int, fraction: float) -> int:
    """How many of so many training reviews a fraction stands for."""
    return max(1, round(rows * fraction))
