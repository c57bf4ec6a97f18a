"""Every study and every pretraining recipe that ships loads and validates."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotd.config import load_config
from cotd.pretraining.config import load_pretrain_config
from cotd.prompts import load_prompts
from cotd.sources import noun
from cotd.task import get_task
from cotd.trials import plan_trials

FOLDER = Path(__file__).parent.parent / "tune_configs"
RECIPES = sorted((FOLDER / "pretrain").rglob("*.y*ml"))
STUDIES = sorted(set(FOLDER.rglob("*.y*ml")) - set(RECIPES))


def test_the_demo_ships() -> None:
    assert FOLDER / "demo.yaml" in STUDIES


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_study_loads_and_plans(path: Path) -> None:
    config = load_config(path)
    grid = config.grid
    trials = plan_trials(config, {size: f"digest of {size}" for size in grid.size}, "reviews", "annotations")
    assert len(trials) == len(grid.method) * len(grid.fraction) * len(grid.size) * len(grid.seed)
    load_prompts(get_task(config.data.task), noun(config.data), config.teacher.prompts)


def test_studies_have_names_of_their_own() -> None:
    names = [load_config(path).name for path in STUDIES]
    assert len(set(names)) == len(names), "two studies of one name would write into one folder"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipe_loads_and_protects_the_embedded_test_reviews(path: Path) -> None:
    config = load_pretrain_config(path)
    protected = {(s.source, split) for s in config.corpus.protect for split in s.splits}
    for name in ("embedded:rotten-tomatoes", "embedded:amazon-sentences"):
        assert {(name, "validation"), (name, "test")} <= protected
