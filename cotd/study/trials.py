"""The trials of a study: every cell of its grid, and every sample of its search, as the trial that it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cotd.config.digest import digest
from cotd.study.config import StudyConfig
from cotd.study.grid import Cell
from cotd.teachers.annotations import labels_digest
from cotd.teachers.filters import Filters
from cotd.training.config import Finetuning
from cotd.training.methods import METHODS
from cotd.training.trial import MULTITASK_SETTINGS, Trial


def plan_trials(
    config: StudyConfig,
    base_digests: Mapping[str, str],
    examples_digest: str,
    annotations_digest: str | None,
    rationales_digest: str | None = None,
    settings: Sequence[dict[str, Any]] = ({},),
    parameters: Mapping[str, float] | None = None,
    precisions: Mapping[str, str] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> list[Trial]:
    """Every cell of the study's grid, the most expensive first, so that a parallel sweep has a short tail.

    Args:
        base_digests: size → content digest of its base model.
        rationales_digest: of the teacher's rationales of validation and test examples, for methods that read them.
        settings: training keys and values of each sample of a search.
        parameters: size → parameters of its base model; if one is missing, sizes count as listed from small to large.
        precisions: size → what `training.precision: auto` stands for.
        kinds: size → kind of its base model, by which settings are chosen that the study leaves out; T5 by default.
    """
    with_rationales = digest([annotations_digest, rationales_digest])
    if not parameters or not all(parameters.get(s) for s in config.grid.all_values("size")):
        parameters = {size: 10.0**rank for rank, size in enumerate(config.sizes)}
    trials: dict[str, Trial] = {}
    for cell in config.grid.all_cells():
        method = METHODS[cell.method]
        samples, filters = chosen_annotations(config, cell)
        needed = with_rationales if method.rationale_as_input else annotations_digest if method.needs_annotations else None
        learns_rationales = any(part.rationale for part in method.parts)
        if needed and not learns_rationales and filters is None:  # filters judge rationales
            needed = labels_digest(needed)
        for drawn in settings:
            training = {k: v for k, v in {**cell.training, **drawn}.items() if k not in MULTITASK_SETTINGS or method.multitask}
            settled = config.training.for_kind((kinds or {}).get(cell.size, "t5"), **training)
            if settled.precision == "auto":
                settled = settled.model_copy(update={"precision": (precisions or {}).get(cell.size, "auto")})
            trial = Trial(
                method=cell.method, fraction=cell.fraction, size=cell.size, seed=cell.seed, model=config.sizes[cell.size],
                training=settled, task=config.task.to_dict(),
                base_digest=base_digests[cell.size], examples_digest=examples_digest, annotations_digest=needed,
                samples=samples, filters=filters, overrides=unusual_settings(config, cell, training),
            )  # fmt: skip
            trials.setdefault(trial.id, trial)
    return sorted(trials.values(), key=lambda t: (-t.cost(parameters[t.size]), -t.fraction, t.seed, t.method))


def chosen_annotations(config: StudyConfig, cell: Cell) -> tuple[int | None, Filters | None]:
    """The (samples, filters) of a cell; None for what is as the annotations were made.

    Filters that were applied to all samples are applied anew to the first n: a majority of five must not choose for one.
    """
    if not METHODS[cell.method].needs_annotations:
        return None, None
    written = config.teacher.filters
    if cell.samples in (None, samples_written(config)):
        return None, None if cell.filters == written else cell.filters
    return cell.samples, written if cell.filters is None else cell.filters


def samples_written(config: StudyConfig) -> int | None:
    """How many samples of an example the teacher writes; None for a file, which has as many as it has."""
    return None if config.teacher.imported else config.teacher.samples


def unusual_settings(config: StudyConfig, cell: Cell, training: dict[str, Any]) -> dict[str, Any]:
    """The settings of a cell that differ from most of its study: from the grid's only value or, without one, the study's block.

    Args:
        training: training keys and values of the cell that its method uses.
    """
    grid, teacher = config.grid, config.teacher
    usual = {key: only(grid.training.get(key), getattr(config.training, key)) for key in training}
    settings = dict(training)
    if METHODS[cell.method].needs_annotations:
        written = samples_written(config)
        usual |= {"samples": only(grid.samples, written), "filters": only(grid.filters, teacher.filters)}
        settings["samples"] = cell.samples or written
        settings["filters"] = teacher.filters if cell.filters is None else cell.filters
    shown = {key: value for key, value in settings.items() if value != usual[key]}
    return {key: str(value) if isinstance(value, Finetuning) else value for key, value in shown.items()}


def only(values: Sequence[Any] | None, otherwise: Any) -> Any:
    """The only one of the values; `otherwise` if there are several, or none."""
    return values[0] if values and len(values) == 1 else otherwise
