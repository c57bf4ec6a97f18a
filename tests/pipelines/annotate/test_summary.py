"""What a summary says of a run's annotations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cotd.data.rows import example_id
from cotd.study.config import StudyConfig, load_config
from cotd.teachers.config import TeacherConfig
from cotd.training.methods import METHODS
from cotd.training.pairs import training_pairs
from pipelines.annotate.files import AnnotationFiles, read_annotations
from pipelines.annotate.run import annotate
from pipelines.annotate.summary import summary_lines
from tests.tasks import SENTIMENT


def test_bad_rows_are_named_in_the_summary(
    write_study: Callable[..., Path], example_rows: pd.DataFrame, teacher_double: Any
) -> None:
    bad = pd.DataFrame(
        [("So-so.", "mixed", "train"), (example_rows["text"][0], "negative", "train"), (example_rows["text"][2], "1", "train")],
        columns=["text", "label", "split"],
    )
    config = load_config(write_study(pd.concat([example_rows, bad]), teacher={"calibration": {"rows": 24}}))
    summary = annotate(config, teacher_double.complete)
    assert (summary["examples"]["rows"], summary["examples"]["repeats"], summary["examples"]["quarantined"]) == (63, 1, 3)
    quarantine = pd.read_parquet(AnnotationFiles.of(config).quarantine)
    assert sorted(quarantine["reason"]) == [
        "label 'mixed' is not one of negative, positive", "repeated with different labels", "repeated with different labels"
    ]  # fmt: skip
    assert summary["annotations"]["examples"] == 23


def test_samples_for_another_label_than_the_majoritys_are_filtered(config: StudyConfig, teacher_double: Any) -> None:
    """Of three samples two say positive: students get these two rationales, and that label."""
    said = {0: "Negative", 1: "Positive", 2: "Positive"}
    teacher_double.write = lambda r: f" Seed {r.sampling['seed']} says so, in words.\nSentiment: {said[r.sampling['seed']]}"
    settings = {"strategy": "chain_of_thought", "samples": 3, "temperature": 0.7, "gold_conditioned": False}
    for filters in (["agrees_with_majority"], []):
        sampled = config.model_copy(update={"teacher": TeacherConfig(**settings, filters=filters)})
        summary = annotate(sampled, teacher_double.complete)
        assert summary["filters"] == ({"agrees_with_majority": 24} if filters else {})
        # Two thirds of the samples say positive of each example, and half of the examples are.
        assert summary["quality"]["labels"]["reliability"] == [
            {"confidence": pytest.approx(2 / 3), "accuracy": 0.5, "rows": 24}
        ]
        assert "of the shares of samples that agree, of 24 training examples" in "".join(
            summary_lines(summary, Path("a.parquet"))
        )
        examples = pd.read_csv(config.data.source).assign(id=lambda t: [example_id(x) for x in t["text"]])
        table = (read_annotations(sampled) or (None,))[0]
        pairs = training_pairs(METHODS["cot_unlabelled"], examples[examples["split"] == "train"], table, SENTIMENT)
        seeds = {t.split()[1] for t in pairs[pairs["target_kind"] == "rationale"]["target"]}
        assert set(pairs[pairs["target_kind"] == "label"]["target"]) == ({"positive"} if filters else {"negative"})
        assert seeds == ({"1", "2"} if filters else {"0"})


def test_the_summary_says_how_good_the_annotations_are(config: StudyConfig, teacher_double: Any) -> None:
    teacher_double.write = lambda r: " A positive example, says " + "abcdefgh"[hash(r.key) % 8] + " whom it moved."
    quality = annotate(config, teacher_double.complete)["quality"]
    assert quality["labels"]["confusion"] == {
        "negative": {"negative": 6, "positive": 0},
        "positive": {"negative": 0, "positive": 6},
    }
    assert quality["labels"]["kappa"] == 1.0
    assert quality["rationales"]["names_its_label"] == 0.5
    assert quality["rationales"]["words"]["p50"] == 8
