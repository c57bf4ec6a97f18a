"""What a study's base models settle for all its trials, by size; kept, so that `cotd status` need not look for the models.

The kind of student is read from each model. What `training.precision: auto` stands for is decided where the study is first planned:
students trained in different precision are not comparable, and machines differ in what they compute fast.
"""

from __future__ import annotations

from typing import NamedTuple

from cotd.study.config import StudyConfig
from cotd.utils.files import read_json, write_json
from cotd.utils.hardware import choose_dtype

FILE = "settled.json"


class Settled(NamedTuple):
    """Size → "bfloat16" or "float32", and size → kind of student."""

    precisions: dict[str, str]
    kinds: dict[str, str]


def kept(config: StudyConfig) -> Settled:
    """What the study's last sweep settled; empty before the first."""
    try:
        known: dict[str, dict[str, str]] = read_json(config.directory / "data" / FILE)
    except (OSError, ValueError):
        return Settled({}, {})
    return Settled(known["precisions"], known["kinds"])


def settle(config: StudyConfig, kinds: dict[str, str]) -> Settled:
    """What holds of all these sizes, which is written down. Args: kinds: size → kind of its base model."""
    known = kept(config)
    precisions = known.precisions | {size: fast_precision(config, size) for size in kinds if size not in known.precisions}
    settled = Settled(precisions, known.kinds | kinds)
    if settled != known:
        path = config.directory / "data" / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, settled._asdict())
    return settled


def fast_precision(config: StudyConfig, size: str) -> str:
    """What trials of a size compute fast; of GPUs that this machine does not have itself, bfloat16."""
    import torch

    gpus, visible = config.resources.of(size).gpus, torch.cuda.is_available()
    if gpus and not visible:
        return "bfloat16"
    return choose_dtype("auto", use_gpu=visible and gpus != 0)
