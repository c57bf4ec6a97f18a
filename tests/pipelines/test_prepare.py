"""Preparing a study's examples: once for the same source, again for another, and never what the study cannot use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import pipelines.prepare
from cotd.cli.app import app
from cotd.data.sources import load_examples
from cotd.errors import CotdError
from cotd.study.config import load_config
from pipelines.prepare import prepare
from pipelines.sweep.plan import plan_study


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that are loaded."""
    sources: list[str] = []

    def load(data, *more):  # type: ignore[no-untyped-def]
        sources.append(data.source_name)
        return load_examples(data, *more)

    monkeypatch.setattr(pipelines.prepare, "load_examples", load)
    return sources


def test_examples_are_written_once_for_the_same_source(
    write_study: Callable[..., Path], example_rows: pd.DataFrame, loads: list[str]
) -> None:
    rows = pd.concat(
        [example_rows, pd.DataFrame([("", "positive", "train"), ("Odd.", "7", "train")], columns=example_rows.columns)]
    )
    config = load_config(write_study(rows))
    first = prepare(config)
    written = first.path.stat().st_mtime_ns
    assert prepare(config) == first
    assert plan_study(config).examples == first.path
    assert len(loads) == 1
    assert first.path.stat().st_mtime_ns == written
    expected = load_examples(config.data, config.task)
    pd.testing.assert_frame_equal(pd.read_parquet(first.path).fillna(""), expected.table.fillna(""), check_dtype=False)
    assert first.path.name == f"examples-{expected.digest()}.parquet"
    assert (first.digest, first.counts) == (expected.digest(), expected.counts)
    assert first.splits == {"train": 24, "validation": 24, "test": 12}
    assert (first.quarantined, first.reasons) == (2, expected.quarantined.counts())


def test_another_source_or_other_settings_make_other_examples(
    write_study: Callable[..., Path], example_rows: pd.DataFrame, loads: list[str]
) -> None:
    config = load_config(write_study())
    first = prepare(config)
    smaller = prepare(load_config(write_study(), ["data.train_rows=8"]))
    assert (smaller.splits["train"], first.splits["train"]) == (8, 24)
    write_study(example_rows.assign(text=example_rows["text"] + " Indeed."))
    assert prepare(config).digest != first.digest
    assert len(loads) == 3
    prepare(config).path.unlink()
    assert prepare(config).path.is_file()


def test_examples_that_the_methods_cannot_use_are_refused_each_time(
    write_study: Callable[..., Path], example_rows: pd.DataFrame
) -> None:
    path = write_study(example_rows.assign(label=example_rows["label"].where(example_rows["split"] != "train")))
    for _ in range(2):
        with pytest.raises(CotdError, match="method 'finetune' trains on gold labels, and no training example has one"):
            prepare(load_config(path))
    assert prepare(load_config(path, ["grid.method=[distill]"])).labels["train"] == {}


def test_the_command_says_where_the_examples_are_and_what_is_quarantined(
    write_study: Callable[..., Path], example_rows: pd.DataFrame
) -> None:
    rows = pd.concat([example_rows, pd.DataFrame([("Odd.", "7", "train")], columns=example_rows.columns)])
    path = write_study(rows)
    result = CliRunner().invoke(app, ["prepare", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"examples: {prepare(load_config(path)).path}",
        "24 train, 24 validation, 12 test",
        "1 of 61 rows quarantined, 0 repeats dropped",
        "  1 × label '7' is not one of negative, positive",
    ]
