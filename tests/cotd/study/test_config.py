from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cotd.config.digest import digest
from cotd.errors import CotdError
from cotd.study.config import load_config
from cotd.training.config import TrainingConfig
from cotd.training.presets import PRESETS


def problems(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(CotdError) as caught:
        load_config(path, list(overrides))
    return caught.value.problems


def test_every_problem_is_reported_at_once(write_study: Callable[..., Path]) -> None:
    reported = problems(
        write_study(),
        "trainin.steps=5",
        "training.stepz=5",
        "training.dropout=2",
        "grid.fraction=[1.5]",
        "grid.method=[distil]",
    )
    assert len(reported) == 5
    text = "\n".join(reported)
    assert "unknown key 'trainin'. Did you mean 'training'?" in text
    assert "unknown key 'training.stepz'. Did you mean 'steps'?" in text
    assert "training.dropout: " in text
    assert "unknown method 'distil'; known: finetune, distill, distill_soft, distill_then_finetune, " in text
    assert "Did you mean 'distill'?" in text
    assert "fraction 1.5 is outside (0, 1]" in text
    assert all("study.yaml" in p for p in reported)


def test_every_bad_value_of_a_list_is_reported(write_study: Callable[..., Path]) -> None:
    text = "\n".join(problems(write_study(), "grid.fraction=[0, 0.5, 1.5]", "grid.method=[distil, fintune]"))
    for wrong in ("fraction 0", "fraction 1.5", "'distil'", "'fintune'"):
        assert wrong in text
    assert "0.5" not in text


def test_an_unknown_size_is_reported_with_the_rest(write_study: Callable[..., Path]) -> None:
    text = "\n".join(problems(write_study(), "grid.size=[tinny]", "training.stepz=5"))
    assert "'tinny' is not in sizes (tiny, minilm, small, smol, base, large). Did you mean 'tiny'?" in text
    assert "stepz" in text


@pytest.mark.parametrize("fraction", ["0", "1.5", "-0.1", ".nan", ".inf", "ten"])
def test_fractions_outside_the_range(write_study: Callable[..., Path], fraction: str) -> None:
    (problem,) = problems(write_study(), f"grid.fraction=[{fraction}]")
    assert "grid.fraction" in problem


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grid.method=[]", "grid.method"),
        ("training.preset=sc401", "training: unknown preset 'sc401'; known: sc4001, hsieh2023. Did you mean 'sc4001'?"),
        ("training.preset=[1]", "training: unknown preset"),
        ("task=emotion", "unknown task 'emotion'; known: "),
        ("teacher.samples=4", "samples > 1 needs temperature > 0"),
        ("teacher.strategy=reason", "'score_then_explain', 'chain_of_thought', 'student' or 'imported'"),
        ("name=a/b", "name: "),
        ("data.source=", "data.source"),
        ("training=", "training"),
        ("teacher.calibration=platt", "teacher.calibration: expected a block of keys: method, prior, rows."),
    ],
)
def test_invalid_values(write_study: Callable[..., Path], override: str, message: str) -> None:
    assert message in "\n".join(problems(write_study(), override))


def test_missing_blocks_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a")
    assert [p.partition(": ")[2] for p in problems(tmp_path / "a.yaml")] == ["'data' is missing.", "'grid' is missing."]


def test_overrides_win_and_the_rest_keeps_its_defaults(write_study: Callable[..., Path]) -> None:
    plain = load_config(write_study())
    config = load_config(
        write_study(),
        ["training.steps=7", "training.learning_rate=1e-4", "grid.seed=[1, 2]", "sizes.mine=./t5", "grid.size=[mine]"],
    )
    assert (config.training.steps, config.training.learning_rate, config.grid.seed) == (7, 1e-4, [1, 2])
    assert config.sizes["mine"] == "./t5"
    assert config.training.batch_size == plain.training.batch_size
    assert config.data == plain.data


def test_a_preset_is_its_values_and_explicit_keys_win(write_study: Callable[..., Path]) -> None:
    config = load_config(write_study(training={"preset": "hsieh2023", "steps": 5}), ["training.rationale_weight=0.5"])
    training = config.training
    assert (training.steps, training.rationale_weight) == (5, 0.5)
    assert (training.learning_rate, training.batch_size, training.max_input_tokens) == (5e-5, 64, 1024)
    written = training.model_dump()
    assert "preset" not in written
    spelt_out = load_config(write_study(training=written)).training
    assert spelt_out == training
    assert digest(spelt_out.model_dump()) == digest(written)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_decides_all_but_how_it_is_computed(name: str, write_study: Callable[..., Path]) -> None:
    """What it left to a default of ours would change with that."""
    how = {"precision", "micro_batch_size", "gradient_checkpointing"}
    assert {*PRESETS[name], *how, "preset"} == set(TrainingConfig.model_fields)
    assert load_config(write_study(), [f"training.preset={name}"]).training.model_dump().items() >= PRESETS[name].items()


def test_the_tracking_store(write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert load_config(write_study()).tracking_uri() == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert load_config(write_study()).tracking_uri() == "http://mlflow:5000"
    assert load_config(write_study(), ["tracking.uri=http://other"]).tracking_uri() == "http://other"
