"""Annotation end to end but for the engine: sources, strategy, store, files and summary are the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cotd.completions import Request
from cotd.config import StudyConfig, load_config
from cotd.errors import CotdError
from pipelines.annotate import AnnotationFiles, annotate, read_annotations


@pytest.fixture
def config(write_study: Callable[..., Path], embedded_student: Path) -> StudyConfig:
    """60 reviews: 24 to annotate, 24 to calibrate on, 12 to test the teacher on. The embedded teacher's tokenizer is used."""
    return load_config(write_study(teacher={"calibration": {"rows": 24}}))


def elsewhere(config: StudyConfig, folder: Path) -> StudyConfig:
    return config.model_copy(update={"storage": str(folder)})


def nobody(requests: Sequence[Request]) -> Iterator[list[dict[str, Any]]]:
    raise AssertionError(f"asked again: {requests[0].prompt}")


def prompts(double: Any) -> list[str]:
    return [r.prompt for r in double.asked]


def test_a_run_leaves_annotations_and_a_summary(config: StudyConfig, teacher_double: Any) -> None:
    summary = annotate(config, teacher_double.complete)
    files = AnnotationFiles.of(config)
    table, again = read_annotations(config) or (None, None)
    assert table is not None
    assert again == json.loads(files.summary.read_text()) == json.loads(json.dumps(summary))
    assert len(table) == 48
    assert table["error"].isna().all()
    assert summary["reviews"] == {
        "rows": 60, "repeats": 0, "quarantined": 0, "kept_train": 24, "kept_validation": 24, "kept_test": 12
    }  # fmt: skip
    assert summary["annotations"] == {"rows": 48, "reviews": 24, "usable": 48, "quarantined": {}}
    assert (summary["teacher"]["accuracy"], summary["teacher"]["n"]) == (1.0, 12)
    assert summary["teacher"]["ci_low"] < 1.0 == summary["teacher"]["ci_high"]
    assert "24 validation reviews" in summary["calibration"]["used"]
    # 60 scores and 24 rationales: the teacher agrees with gold, so that a rationale given gold is the same request.
    assert summary["usage"]["requests"] == len(teacher_double.asked) == len({r.key for r in teacher_double.asked}) == 84
    assert summary["usage"]["prompt_tokens"] == 84 * 5
    assert (pd.read_parquet(files.teacher_test)["predicted"] == pd.read_parquet(files.teacher_test)["gold"]).all()
    assert not list(files.directory.glob("*.part"))


def test_a_second_run_asks_nothing(config: StudyConfig, teacher_double: Any) -> None:
    first = annotate(config, teacher_double.complete)
    before = pd.read_parquet(AnnotationFiles.of(config).annotations)
    second = annotate(config, nobody)
    another_study = annotate(config.model_copy(update={"name": "another"}), nobody)  # the store is the storage folder's
    pd.testing.assert_frame_equal(pd.read_parquet(AnnotationFiles.of(config).annotations), before)
    assert second["digest"] == first["digest"]
    assert another_study["digest"] == first["digest"]
    assert second["usage"] == another_study["usage"] == {"requests": 84, "from_store": 84}


@pytest.mark.parametrize("stage", ["label scores", "rationales"])
def test_a_stopped_run_goes_on_where_it_was(config: StudyConfig, teacher_double: Any, tmp_path: Path, stage: str) -> None:
    whole = annotate(elsewhere(config, tmp_path / "whole"), teacher_double.complete)
    every_key = {r.key for r in teacher_double.asked}

    double = type(teacher_double)()
    written = 0

    def stop(request: Request) -> str:
        nonlocal written
        written += 1
        if written > 10:
            raise KeyboardInterrupt
        return teacher_double.write(request)

    if stage == "label scores":
        double.stop_after = 1
    else:
        double.write = stop
    with pytest.raises(KeyboardInterrupt):
        annotate(config, double.complete)
    assert read_annotations(config) is None, "half a table would be taken for a whole one"
    kept = 8 if stage == "label scores" else 60 + 8  # whole batches of 8

    rest = type(teacher_double)()
    summary = annotate(config, rest.complete)
    asked = [r.key for r in rest.asked]
    assert len(asked) == len(set(asked)) == 84 - kept
    assert set(asked) | {r.key for r in double.asked} == every_key
    assert summary["digest"] == whole["digest"]
    assert summary["usage"]["from_store"] == kept


def test_failed_answers_are_quarantined_and_asked_again(config: StudyConfig, teacher_double: Any) -> None:
    teacher_double.fails = lambda prompt: prompt.endswith("Reason:") and "number 3." in prompt
    summary = annotate(config, teacher_double.complete)
    table = pd.read_parquet(AnnotationFiles.of(config).annotations)
    assert summary["annotations"]["usable"] == 46
    assert summary["annotations"]["quarantined"] == {"the engine ran out of memory": 2}
    assert summary["usage"]["failed"] == 1
    assert table["error"].notna().sum() == 2

    still = annotate(config, teacher_double.complete)
    assert still["annotations"] == summary["annotations"], "one row that always fails does not fail the run"

    again = type(teacher_double)()
    summary = annotate(config, again.complete)
    assert len(again.asked) == 1
    assert "number 3." in prompts(again)[0]
    assert summary["annotations"]["usable"] == 48


def test_more_reviews_cost_only_what_is_new(config: StudyConfig, teacher_double: Any, write_study: Callable[..., Path]) -> None:
    small = load_config(write_study(teacher={"calibration": {"rows": 24}}), ["data.train_rows=10"])
    annotate(small, teacher_double.complete)
    asked = len(teacher_double.asked)
    assert asked == (10 + 24 + 12) + 10
    annotate(config, teacher_double.complete)
    assert len(teacher_double.asked) - asked == 2 * 14


def test_a_teacher_that_fails_throughout_is_an_error(config: StudyConfig, teacher_double: Any) -> None:
    teacher_double.fails = lambda prompt: True
    with pytest.raises(CotdError, match="the teacher failed on all 60 requests for label scores: the engine ran out of memory"):
        annotate(config, teacher_double.complete)
    assert read_annotations(config) is None


def test_bad_rows_are_named_in_the_summary(
    write_study: Callable[..., Path], review_rows: pd.DataFrame, teacher_double: Any
) -> None:
    bad = pd.DataFrame(
        [("So-so.", "mixed", "train"), (review_rows["text"][0], "negative", "train"), (review_rows["text"][2], "1", "train")],
        columns=["text", "label", "split"],
    )
    config = load_config(write_study(pd.concat([review_rows, bad]), teacher={"calibration": {"rows": 24}}))
    summary = annotate(config, teacher_double.complete)
    assert (summary["reviews"]["rows"], summary["reviews"]["repeats"], summary["reviews"]["quarantined"]) == (63, 1, 3)
    quarantine = pd.read_parquet(AnnotationFiles.of(config).quarantine)
    assert sorted(quarantine["reason"]) == [
        "label 'mixed' is not one of negative, positive", "repeated with different labels", "repeated with different labels"
    ]  # fmt: skip
    assert summary["annotations"]["reviews"] == 23


def test_a_long_review_is_cut_to_the_teachers_limit(
    write_study: Callable[..., Path], review_rows: pd.DataFrame, teacher_double: Any
) -> None:
    long = pd.DataFrame([("warm " * 500 + "THE END", "positive", "train")], columns=["text", "label", "split"])
    settings = {"calibration": {"rows": 24}, "max_review_tokens": 50}
    annotate(load_config(write_study(pd.concat([review_rows, long]), teacher=settings)), teacher_double.complete)
    (shown,) = {p for p in prompts(teacher_double) if p.count("warm") > 20 and p.endswith("Sentiment:")}
    assert 40 <= shown.count("warm") <= 50
    assert "THE END" not in shown
