"""What a run works on, and what makes it another: its store, the teacher's weights, how examples are cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cotd.errors import CotdError
from cotd.study.config import StudyConfig, load_config
from pipelines.annotate.job import load_job
from pipelines.annotate.run import annotate
from pipelines.sweep.plan import check_annotations
from tests.pipelines.annotate.doubles import nobody, prompts


def test_the_store_may_be_elsewhere(config: StudyConfig, teacher_double: Any, tmp_path: Path) -> None:
    elsewhere = config.model_copy(update={"teacher": config.teacher.model_copy(update={"store": "memory://completions"})})
    annotate(elsewhere, teacher_double.complete)
    assert not (config.directory.parent / "completions").exists()
    summary = annotate(elsewhere.model_copy(update={"storage": str(tmp_path / "other")}), nobody)
    assert summary["usage"] == {"requests": 84, "from_store": 84}


@pytest.mark.parametrize("store", ["nowhere://bucket/x", "gs://bucket/x"])
def test_a_store_that_cannot_be_used(write_study: Callable[..., Path], store: str) -> None:
    with pytest.raises(CotdError, match=f"teacher.store '{store}' cannot be used"):
        annotate(load_config(write_study(teacher={"store": store})), nobody)


def test_a_store_that_cannot_be_written_is_noticed_before_anything_is_asked(
    config: StudyConfig, teacher_double: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    store = str(tmp_path / "file" / "completions")
    unwritable = config.model_copy(update={"teacher": config.teacher.model_copy(update={"store": store})})
    with pytest.raises(CotdError, match=r"cannot be written: .*name another folder or URL"):
        annotate(unwritable, teacher_double.complete)
    assert not teacher_double.asked


def test_a_damaged_shard_is_named_in_the_summary(config: StudyConfig, teacher_double: Any) -> None:
    annotate(config, teacher_double.complete)
    asked = len(teacher_double.asked)
    shard = min((config.directory.parent / "completions").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:100])
    summary = annotate(config, teacher_double.complete)
    assert len(teacher_double.asked) == asked + 8, "what was in it"
    assert summary["annotations"]["usable"] == 48
    (warning,) = summary["warnings"]
    assert warning.startswith("1 shards of ")
    assert shard.name in warning


def test_weights_loaded_otherwise_are_another_teacher(
    config: StudyConfig, teacher_double: Any, write_study: Callable[..., Path]
) -> None:
    """But for what only makes the engine faster."""
    plain = annotate(config, teacher_double.complete)
    path = write_study(teacher={"calibration": {"rows": 24}})
    faster = load_config(path, ["teacher.engine.engine_kwargs={gpu_memory_utilization: 0.5}"])
    assert annotate(faster, nobody)["inputs"] == plain["inputs"]
    quantised = load_config(path, ["teacher.engine.engine_kwargs={quantization: fp8}"])
    again = annotate(quantised, teacher_double.complete)
    assert again["usage"]["from_store"] == 0
    assert again["inputs"] != plain["inputs"]


def test_how_examples_are_cut_makes_other_annotations(
    write_study: Callable[..., Path], example_rows: pd.DataFrame, teacher_double: Any
) -> None:
    rows = pd.DataFrame([("A warm film. " * 200, "positive", "train")], columns=["text", "label", "split"])
    path = write_study(pd.concat([example_rows, rows]), teacher={"calibration": {"rows": 24}})
    assert annotate(load_config(path), teacher_double.complete)["examples"]["cut"] == 1
    head = load_config(path, ["teacher.truncation=head", "grid.method=[distill]"])
    with pytest.raises(CotdError, match="made for other"):
        check_annotations(head, load_job(head).examples.digest())


@pytest.mark.parametrize("truncation", ["head", "head_tail"])
def test_a_long_example_is_cut_to_the_teachers_limit(
    write_study: Callable[..., Path], example_rows: pd.DataFrame, teacher_double: Any, truncation: str
) -> None:
    long = pd.DataFrame([("warm " * 500 + "THE END", "positive", "train")], columns=["text", "label", "split"])
    settings = {"calibration": {"rows": 24}, "max_text_tokens": 50, "truncation": truncation}
    annotate(load_config(write_study(pd.concat([example_rows, long]), teacher=settings)), teacher_double.complete)
    (shown,) = {p for p in prompts(teacher_double) if p.count("warm") > 20 and p.endswith("Sentiment:")}
    assert 40 <= shown.count("warm") <= 50
    assert ("THE END" in shown) == (truncation == "head_tail")


def test_cut_examples_are_counted(write_study: Callable[..., Path], example_rows: pd.DataFrame, teacher_double: Any) -> None:
    long = pd.DataFrame(
        [(f"{'A warm film. ' * 8000} {i}", "positive", "train") for i in range(3)], columns=["text", "label", "split"]
    )
    config = load_config(write_study(pd.concat([example_rows, long]), teacher={"calibration": {"rows": 24}}))
    assert annotate(config, teacher_double.complete)["examples"]["cut"] == 3
