"""Two dozen examples, their annotations, and a finished trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer

from cotd.data.examples import build_examples
from cotd.data.spill import SortedRows
from cotd.teachers.annotations import KEY, SCHEMA, annotation_row
from cotd.training.folder import TrialFolder
from cotd.training.train import train_trial
from cotd.training.trial import Trial
from tests.cotd.training.helpers import (
    make_folder,
    make_trial,
)
from tests.tasks import SENTIMENT
from tests.tiny_models import write_tiny


@pytest.fixture(scope="session")
def base(embedded_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Writes a tiny model of a name, once."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_student, local_files_only=True)

    def folder(name: str) -> Path:
        path = tmp_path_factory.getbasetemp() / f"tiny-{name}"
        return path if path.is_dir() else write_tiny(name, path, tokenizer)

    return folder


@pytest.fixture(scope="module")
def examples(example_rows: pd.DataFrame) -> pd.DataFrame:
    return build_examples(example_rows, "small", SENTIMENT).table


@pytest.fixture(scope="module")
def annotations(examples: pd.DataFrame) -> pd.DataFrame:
    """Right labels, and rationales of different lengths."""
    origin = {"teacher": "double", "revision": "1", "prompt_hash": "p"}
    done = {"finish_reason": "stop", "logprob": -1.0, "prompt_tokens": 1, "output_tokens": 1}
    rows = SortedRows(SCHEMA, KEY)
    for number, example in enumerate(examples[examples["split"] == "train"].itertuples()):
        why = f"The reviewer finds it {'warm' if example.label == 'positive' else 'dull'}{' indeed' * (number % 3)}."
        for by_gold in (False, True):
            rows.add(annotation_row(example.id, 0, by_gold, example.label, None, why, done, origin))
    return rows.table()


@pytest.fixture(scope="module")
def trained(
    tiny_t5: Path, examples: pd.DataFrame, annotations: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trial, TrialFolder, dict[str, Any]]:
    """A finished trial, trained with dropout and in bfloat16, its folder and its result."""
    trial = make_trial(tiny_t5, "cot_unlabelled", dropout=0.1, precision="bfloat16")
    folder = make_folder(tmp_path_factory.mktemp("trials") / trial.id)
    return trial, folder, train_trial(trial, folder, examples, annotations, {"teacher": {"model": "double"}})
