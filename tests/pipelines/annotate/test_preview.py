"""Dry runs and estimates against what a run then asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cotd.study.config import StudyConfig, load_config
from pipelines.annotate.preview import preview
from pipelines.annotate.run import annotate
from tests.pipelines.annotate.doubles import prompts


def test_a_dry_run_shows_the_prompts_that_are_sent(config: StudyConfig, teacher_double: Any) -> None:
    shown = list(preview(config, 2))
    assert not config.directory.parent.exists()
    # 60 scores, 24 rationales given gold, and as many where the teacher's label turns out to be another.
    assert shown[-1].startswith("at most 108 requests to make (0 completions are in the store): about ")
    annotate(config, teacher_double.complete)
    sent = set(prompts(teacher_double))
    assert len([line for line in shown if line in sent]) == 4
    assert list(preview(config, 1))[-1].startswith("0 requests to make (84 completions are in the store)")


@pytest.mark.parametrize("gold_conditioned", [True, False])
def test_an_estimate_goes_by_the_labels_that_the_scores_give(
    write_study: Callable[..., Path], example_rows: pd.DataFrame, teacher_double: Any, gold_conditioned: bool
) -> None:
    """Three training examples' gold is not what the teacher says; once the scores are known so is what it will explain."""
    wrong = example_rows["text"].str.contains("number [135]\\.")
    rows = example_rows.assign(label=example_rows["label"].mask(wrong, "positive"))
    config = load_config(
        write_study(rows, teacher={"calibration": {"rows": 24}, "gold_conditioned": gold_conditioned}),
        ["grid.method=[distill]"],
    )
    teacher_double.stop_after = 8
    with pytest.raises(KeyboardInterrupt):
        annotate(config, teacher_double.complete)
    rationales = 24 + 3 if gold_conditioned else 24
    last = list(preview(config, 1))[-1]
    assert last.startswith(f"{rationales} requests to make (60 completions are in the store)")
    teacher_double.stop_after = None
    assert annotate(config, teacher_double.complete)["usage"]["requests"] == 60 + rationales
    assert len(teacher_double.asked) == 60 + rationales
    assert list(preview(config, 1))[-1].startswith(f"0 requests to make ({60 + rationales} completions are in the store)")
