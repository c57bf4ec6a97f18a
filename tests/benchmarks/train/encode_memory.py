"""Peak memory of encoding 10,000 and 200,000 training pairs: `python -m tests.benchmarks.train.encode_memory`; five minutes.

Each size is a process of its own, which reads the Example and Annotation tables from Parquet files and writes what trials map
into memory: label and rationale of each example, for the embedded student.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cotd import assets
from cotd.students.backends.choose import make_backend
from cotd.students.base_models import load_base
from cotd.teachers.annotations import SCHEMA
from cotd.training.config import TrainingConfig
from cotd.training.encoding import EncodedPairs, encode_trial
from cotd.training.trial import Trial
from tests.benchmarks.annotate.stub import WORDS
from tests.benchmarks.figures import call, is_small, memory_figures, peak_megabytes, scratch_folder, write
from tests.benchmarks.students import EMBEDDED
from tests.tasks import SENTIMENT

PAIRS = (10_000, 200_000)
METHOD = "cot_labelled"  # of two pairs an example


def write_tables(folder: str, rows: int) -> None:
    """Examples of 20 to 120 words and rationales of 20 to 60."""
    draw, words = random.Random(0), WORDS.split()
    ids = [f"{i:016x}" for i in range(rows)]
    texts = [" ".join([*draw.choices(words, k=draw.randint(20, 120)), str(i)]) for i in range(rows)]
    labels = [draw.choice(SENTIMENT.labels) for _ in ids]
    examples = pa.table({"id": ids, "text": texts, "label": labels, "split": ["train"] * rows})
    pq.write_table(examples, Path(folder) / "examples.parquet")
    own: dict[str, Any] = {name: [None] * rows for name in SCHEMA.names}
    own |= {"example_id": ids, "sample": [0] * rows, "gold_conditioned": [True] * rows, "label": labels}
    own["rationale"] = [" ".join(draw.choices(words, k=draw.randint(20, 60))) for _ in ids]
    pq.write_table(pa.table(own, schema=SCHEMA), Path(folder) / "annotations.parquet")


def run(folder: str) -> tuple[int, float]:
    """How many pairs were encoded, and the peak memory of this process, in MiB."""
    card = {"max_input_tokens": 128, "max_target_tokens": 64}
    trial = Trial(METHOD, 1.0, "tiny", 0, EMBEDDED, TrainingConfig(**card), SENTIMENT.to_dict(), "b", "r", "a")
    backend = make_backend(*load_base(EMBEDDED), SENTIMENT, card)
    to = Path(folder) / "pairs"
    annotations = pd.read_parquet(Path(folder) / "annotations.parquet")
    encode_trial(trial, Path(folder) / "examples.parquet", annotations, backend, to)
    return len(EncodedPairs.open(to).pairs), peak_megabytes()


def measured(pairs: int) -> tuple[int, float]:
    with scratch_folder() as folder:
        call("train.encode_memory", "write_tables", folder=folder, rows=pairs // 2)
        return call("train.encode_memory", "run", folder=folder)


def main() -> None:
    small = is_small(__doc__)
    assets.pull(["t5-mini"], report=lambda _: None)
    few, many = (measured(pairs // 20 if small else pairs) for pairs in PAIRS)
    write("encode_memory", memory_figures("peak_mb", "pair", few, many), small)


if __name__ == "__main__":
    main()
