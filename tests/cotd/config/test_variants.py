from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cotd.errors import CotdError
from cotd.study.config import StudyConfig, load_config

VARIANTS = {
    "big": {"training": {"steps": 900}, "grid": {"fraction": [0.5, 1.0]}},
    "small": {"training": {"steps": 5, "preset": None}, "resources": {"cpus": 2}},
}


@pytest.fixture
def study(write_study: Callable[..., Path]) -> Path:
    return write_study(variant="big", variants=VARIANTS, training={"preset": "sc4001", "batch_size": 4})


def test_a_variant_is_laid_over_the_study_and_overrides_over_that(study: Path) -> None:
    big, small = load_config(study), load_config(study, ["training.batch_size=2", "variant=small"])
    assert (big.name, big.variant, big.training.steps, big.training.batch_size) == ("small-big", "big", 900, 4)
    assert (big.training.learning_rate, big.grid.fraction, big.grid.method) == (2e-5, [0.5, 1.0], ["finetune"])
    assert (small.name, small.training.steps, small.training.batch_size) == ("small-small", 5, 2)
    assert small.training.learning_rate != 2e-5, "the preset is taken back"
    assert StudyConfig.model_validate(small.model_dump()) == small
    assert load_config(study, ["name=mine"]).name == "mine"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["variant=bigg"],
            "no variant 'bigg'. Did you mean 'big'? Choose one, for example variant=big. Available: big, small.",
        ),
        (["variants.big.training.steps=3"], "unknown key 'variants'. Did you mean 'variant'?"),
        (["variant=small", "training.stepz=3"], "unknown key 'training.stepz'. Did you mean 'steps'?"),
    ],
)
def test_unknown_variants_and_keys(study: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(CotdError) as caught:
        load_config(study, overrides)
    assert message in str(caught.value)


def test_a_study_without_variants_or_without_a_choice(write_study: Callable[..., Path]) -> None:
    with pytest.raises(CotdError, match="variant=big': this study has no variants"):
        load_config(write_study(), ["variant=big"])
    with pytest.raises(CotdError, match=r"choose a variant, for example variant=big\. Available: big, small"):
        load_config(write_study(variants=VARIANTS))
    with pytest.raises(CotdError, match="not a mapping of names to blocks"):
        load_config(write_study(variant="big", variants={"big": 3}))


def test_a_mistake_in_another_variant_is_found_too(write_study: Callable[..., Path]) -> None:
    path = write_study(variant="big", variants={**VARIANTS, "worse": {"training": {"dropout": 2}}}, nam="x")
    with pytest.raises(CotdError) as caught:
        load_config(path)
    assert len(caught.value.problems) == 2
    assert "unknown key 'nam'" in str(caught.value)
    assert "variants.worse: training.dropout" in str(caught.value)
