"""What the benchmarks of sweeps share: a study of gold finetuning on the embedded examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cotd.study.config import StudyConfig, load_config


def write_study(folder: Path, fractions: list[float], seeds: int, training: dict[str, Any], **blocks: Any) -> StudyConfig:
    """Writes `folder/study.yaml`: every fraction with so many seeds."""
    study = {
        "name": "bench",
        "data": {"source": "embedded:rotten-tomatoes", "train_rows": 1000, "validation_rows": 200, "test_rows": 200},
        "grid": {"method": ["finetune"], "fraction": fractions, "size": ["tiny"], "seed": list(range(seeds))},
        "training": {"batch_size": 16, "dropout": 0.0, "max_input_tokens": 96, **training},
        "storage": str(folder / "runs"),
        **blocks,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return load_config(path)
