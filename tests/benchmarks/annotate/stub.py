"""What the benchmarks of annotation share: a study of many generated examples, and an engine that waits instead of computing."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cotd.study.config import StudyConfig, load_config
from cotd.teachers.store import new_completion

WORDS = "a warm funny dull slow film with two leads and an ending that moved bored me to tears from start to end"


def write_study(folder: Path | str, train: int, held_out: int = 100, **teacher: Any) -> StudyConfig:
    """A study of `train` generated training examples, and `held_out` validation and test examples each."""
    folder, draw = Path(folder), random.Random(0)
    splits = ["validation"] * held_out + ["test"] * held_out + ["train"] * train
    rows = []
    for i, split in enumerate(splits):
        words = " ".join(draw.choices(WORDS.split(), k=18))
        rows.append((f"{['dull', 'warm'][i % 2]} {words}, number {i}.", ["negative", "positive"][i % 2], split))
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=["text", "label", "split"]).to_parquet(folder / "reviews.parquet")
    study = {
        "name": "bench",
        "data": {"source": str(folder / "reviews.parquet"), "columns": {"split": "split"}},
        "teacher": {"calibration": {"rows": min(100, held_out)}} | teacher,
        "grid": {"method": ["distill"], "fraction": [1.0], "size": ["tiny"], "seed": [0]},
        "storage": str(folder / "runs"),
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return load_config(path)


def stub_completion(key: str, prompt: str, sampling: dict[str, Any]) -> dict[str, Any]:
    """What depends on the prompt alone: a label score, or a rationale."""
    common = {"finish_reason": "stop", "prompt_tokens": len(prompt) // 4, "output_tokens": 12}
    if "allowed_token_ids" in sampling:
        warm = "warm" in prompt.rpartition("eview: ")[2]
        return new_completion(key, label_logprobs=[-1.0, -0.1] if warm else [-0.2, -1.0], **common)
    return new_completion(key, text=f" The reviewer says what it was like, as key {key[:12]} shows.", logprob=-3.0, **common)


class StubEngine:
    """Stands in for `pipelines.annotate.engines.in_process.InProcessEngine`: each row takes `SECONDS_A_ROW`, and no processor."""

    SECONDS_A_ROW = 0.0

    def __init__(self, arguments: dict[str, Any]):
        pass

    def complete(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        time.sleep(self.SECONDS_A_ROW * len(batch["key"]))
        rows = zip(batch["key"], batch["prompt"], batch["sampling"], strict=True)
        return {"completion": [json.dumps(stub_completion(k, p, json.loads(s))) for k, p, s in rows]}
