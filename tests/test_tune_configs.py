"""Every study that ships loads and validates."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cotd.config.digest import digest
from cotd.data.config import SPLITS
from cotd.data.sources import load_examples, noun
from cotd.study.config import StudyConfig, load_config
from cotd.study.trials import plan_trials
from cotd.teachers.prompts import load_prompts
from pipelines.sweep.search import draw_settings
from pipelines.train import with_first_trial

FOLDER = Path(__file__).parent.parent / "tune_configs"
STUDIES = sorted(FOLDER.rglob("*.y*ml"))


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
    trials = plan_trials(
        config, digests, "examples", "annotations", settings=draw_settings(config.search) if config.search else [{}]
    )
    cells = list(config.grid.all_cells())
    # Each combination is a trial of its own: none says what another does.
    assert len(trials) == len(cells) * (config.search.samples if config.search else 1)
    assert len({t.title for t in trials}) == len(trials)
    load_prompts(config.task, noun(config.data, config.task), config.teacher.prompts)
    assert StudyConfig.model_validate(config.model_dump()) == config, "what is saved is what was run"


OWN = sorted(FOLDER.glob("*.csv"))


@pytest.mark.parametrize("file", OWN, ids=lambda file: file.name)
def test_every_row_of_a_shipped_table_is_an_example(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)  # studies name the table as seen from the repository
    config = load(file.with_suffix(".yaml"), None)
    assert config.data.source == f"tune_configs/{file.name}"
    examples = load_examples(config.data, config.task)
    assert examples.counts["quarantined"] == examples.counts["repeats"] == 0
    assert examples.table["label"].notna().all()
    for split in SPLITS:
        assert set(examples.split(split)["label"]) == set(config.task.labels) or not config.task.labels, split


def test_studies_have_names_of_their_own() -> None:
    names = [load(path, variant).name for path, variant in EVERY]
    assert len(set(names)) == len(names), "two studies of one name would write into one folder"


@pytest.mark.parametrize(("variant", "number"), [("imdb", 4), ("yelp", 4), ("embedded", 3)])
def test_studies_of_one_variant_share_their_examples(variant: str, number: int) -> None:
    """The teacher is not asked again about what it has annotated for another of them."""
    studies = [load(path, name) for path, name in EVERY if name == variant]
    assert len(studies) == number
    assert len({digest(study.data.model_dump()) for study in studies}) == 1
    assert len({(study.teacher.model, study.teacher.strategy, study.teacher.max_text_tokens) for study in studies}) == 1


def test_large_students_are_trained_on_all_data_only() -> None:
    cells = load(FOLDER / "model_size.yaml", "imdb").grid.all_cells()
    assert {(c.size, c.fraction) for c in cells} == {("small", 0.5), ("small", 1), ("base", 0.5), ("base", 1), ("large", 1)}


def test_the_demos_first_student_is_trained_without_a_teacher() -> None:
    """`cotd train tune_configs/demo.yaml` is a new user's first try."""
    first = with_first_trial(load_config(FOLDER / "demo.yaml"))
    assert (first.grid.method, first.grid.size) == (["finetune"], ["tiny"])
    assert first.grid.count_all() == 1
