"""What `training.precision: auto` stands for in a study: decided where it is first planned, and kept for all its trials.

Students trained in different precision are not comparable, and machines differ in what they compute fast.
"""

from __future__ import annotations

from collections.abc import Iterable

from cotd.study.config import StudyConfig
from cotd.utils.files import read_json, write_json
from cotd.utils.hardware import choose_dtype

FILE = "precision.json"


def kept_precisions(config: StudyConfig) -> dict[str, str]:
    """Size → "bfloat16" or "float32", of sizes for which it has been decided."""
    try:
        known: dict[str, str] = read_json(config.directory / "data" / FILE)
    except (OSError, ValueError):
        return {}
    return known


def study_precisions(config: StudyConfig, sizes: Iterable[str]) -> dict[str, str]:
    """The same of all these sizes; what is decided here is written down."""
    known = kept_precisions(config)
    if new := {size: fast_precision(config, size) for size in sizes if size not in known}:
        path = config.directory / "data" / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known | new)
    return known | new


def fast_precision(config: StudyConfig, size: str) -> str:
    """What trials of a size compute fast; of GPUs that this machine does not have itself, bfloat16."""
    import torch

    gpus, visible = config.resources.of(size).gpus, torch.cuda.is_available()
    if gpus and not visible:
        return "bfloat16"
    return choose_dtype("auto", use_gpu=visible and gpus != 0)
