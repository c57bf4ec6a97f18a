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

from collections.abc import Mapping, Sequence
from typing import Any

from cotd.config.digest import digest
from cotd.study.config import StudyConfig
from cotd.study.grid import Cell
from cotd.teachers.filters import Filters
from cotd.training.methods import METHODS
from cotd.training.trial import RATIONALE_SETTINGS, Trial


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
            varied = {k: v for k, v in {**cell.training, **drawn}.items() if k not in RATIONALE_SETTINGS or method.multitask}
            trial = Trial(
                method=cell.method, fraction=cell.fraction, size=cell.size, seed=cell.seed, model=config.sizes[cell.size],
                training=config.training.model_copy(update=varied), task=config.data.task,
                base_digest=base_digests[cell.size], reviews_digest=reviews_digest,
                annotations_digest=(
                    read if method.rationale_as_input else annotations_digest if method.needs_annotations else None
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
