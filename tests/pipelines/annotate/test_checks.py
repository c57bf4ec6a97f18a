"""What is refused or warned of before anything is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cotd.errors import CotdError
from cotd.study.config import load_config
from pipelines.annotate.job import load_job
from pipelines.annotate.run import annotate
from pipelines.prepare import prepare as prepare_examples
from tests.pipelines.annotate.doubles import nobody


def test_a_prompt_too_long_for_the_context_is_refused_before_anything_starts(write_study: Callable[..., Path]) -> None:
    engine = {"max_model_len": 256}
    path = write_study(teacher={"calibration": {"rows": 24}, "max_text_tokens": 200, "engine": engine})
    with pytest.raises(
        CotdError, match=r"an example of teacher.max_text_tokens \(200\) does not fit .*\(256\).* at least (\d+)"
    ) as error:
        annotate(load_config(path), nobody)
    enough = str(error.value).rpartition("at least ")[2].rstrip(".")
    load_job(load_config(path, [f"teacher.engine.max_model_len={enough}"]))


def test_a_column_of_stars_is_refused(write_study: Callable[..., Path], example_rows: pd.DataFrame) -> None:
    stars = example_rows.assign(
        label=[
            str(1 + i % 5) if s == "train" else label
            for i, (label, s) in enumerate(zip(example_rows["label"], example_rows["split"], strict=True))
        ]
    )
    config = load_config(write_study(stars, teacher={"calibration": {"rows": 24}}))
    with pytest.raises(CotdError, match=r"19 of 60 labels are not one of negative, positive: '2' \(5 rows\).*task\.labels"):
        prepare_examples(config)
