"""Every study and every pretraining recipe that ships loads and validates."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cotd.config import StudyConfig, digest, load_config
from cotd.pretraining.config import load_pretrain_config
from cotd.prompts import load_prompts
from cotd.sources import noun
from cotd.task import get_task
from cotd.trials import plan_trials
from pipelines.study import search_settings

FOLDER = Path(__file__).parent.parent / "tune_configs"
RECIPES = sorted((FOLDER / "pretrain").rglob("*.y*ml"))
STUDIES = sorted(set(FOLDER.rglob("*.y*ml")) - set(RECIPES))


def test_the_demo_ships() -> None:
    assert FOLDER / "demo.yaml" in STUDIES


def variants(path: Path) -> list[str | None]:
    return list(yaml.safe_load(path.read_text()).get("variants", [None]))


EVERY = [(path, variant) for path in STUDIES for variant in variants(path)]


def load(path: Path, variant: str | None) -> StudyConfig:
    return load_config(path, [f"variant={variant}"] if variant else [])


@pytest.mark.parametrize(("path", "variant"), EVERY, ids=lambda v: v.name if isinstance(v, Path) else v)
def test_study_loads_and_plans(path: Path, variant: str | None) -> None:
    config = load(path, variant)
    digests = {size: f"digest of {size}" for size in config.grid.all_values("size")}
    trials = plan_trials(config, digests, "reviews", "annotations", settings=search_settings(config))
    cells = list(config.grid.all_cells())
    # Each combination is a trial of its own: none says what another does.
    assert len(trials) == len(cells) * (config.search.samples if config.search else 1)
    assert len({t.title for t in trials}) == len(trials)
    load_prompts(get_task(config.data.task), noun(config.data), config.teacher.prompts)
    assert StudyConfig.model_validate(config.model_dump()) == config, "what is saved is what was run"


def test_studies_have_names_of_their_own() -> None:
    names = [load(path, variant).name for path, variant in EVERY]
    assert len(set(names)) == len(names), "two studies of one name would write into one folder"


@pytest.mark.parametrize("variant", ["imdb", "yelp", "embedded"])
def test_studies_of_one_variant_share_their_reviews(variant: str) -> None:
    """So that what one study had annotated is not asked again for the next."""
    studies = [load(path, name) for path, name in EVERY if name == variant]
    assert len(studies) == 4
    assert len({digest(study.data.model_dump()) for study in studies}) == 1
    assert len({(study.teacher.model, study.teacher.strategy, study.teacher.max_review_tokens) for study in studies}) == 1


def test_large_students_are_trained_on_all_data_only() -> None:
    cells = load(FOLDER / "model_size.yaml", "imdb").grid.all_cells()
    assert {(c.size, c.fraction) for c in cells} == {("small", 0.5), ("small", 1), ("base", 0.5), ("base", 1), ("large", 1)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipe_loads_and_protects_the_embedded_test_reviews(path: Path) -> None:
    config = load_pretrain_config(path)
    protected = {(s.source, split) for s in config.corpus.protect for split in s.splits}
    for name in ("embedded:rotten-tomatoes", "embedded:amazon-sentences"):
        assert {(name, "validation"), (name, "test")} <= protected
