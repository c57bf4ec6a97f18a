"""Which student is promoted, and when the champion stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cotd.errors import CotdError
from cotd.study.config import StudyConfig, load_config
from cotd.tracking.runs import StudyTracker
from cotd.utils.files import read_json, write_json
from pipelines import promote as package
from tests.pipelines.report.studies import Study
from tests.tasks import TICKETS


class Registry:
    """A registry of one model: a version a run, whose alias a test reads."""

    name = "cotd-student"

    def __init__(self) -> None:
        self.versions: dict[str, SimpleNamespace] = {}
        self.aliases: dict[str, str] = {}
        self.descriptions: dict[str, str] = {}

    def champion(self) -> SimpleNamespace | None:
        return self.alias("champion")

    def alias(self, alias: str) -> SimpleNamespace | None:
        return next((v for v in self.versions.values() if v.version == self.aliases.get(alias)), None)

    def register(self, run_id: str, tags: dict[str, str]) -> SimpleNamespace:
        version = SimpleNamespace(version=str(len(self.versions) + 1), run_id=run_id, tags=tags)
        return self.versions.setdefault(run_id, version)

    def promote(self, version: str) -> None:
        self.aliases["champion"] = version

    def set_alias(self, alias: str, version: str) -> None:
        self.aliases[alias] = version

    def describe(self, version: str, text: str) -> None:
        self.descriptions[version] = text


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    tracker = SimpleNamespace(
        registry=registry, sync_trial=lambda trial, folder: f"run of {trial.id}", log_student=lambda trial, folder: None
    )
    monkeypatch.setattr(package, "StudyTracker", lambda config: tracker)
    monkeypatch.setattr(package, "validation_accuracy", lambda plan, student, validation: 0.6)
    monkeypatch.setattr(package, "find_student", lambda uri: (tmp_path, {"task": "sentiment"}))
    return registry


@pytest.fixture
def made(write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Study:
    grid = {"method": ["finetune", "distill", "rationale_input"], "fraction": [0.1, 1.0], "size": ["tiny"], "seed": [0]}
    made = Study(write_study, grid)
    monkeypatch.setattr(package, "plan_study", lambda config: made.plan())
    return made


def test_the_best_distilled_student_that_predicts_alone_is_promoted(made: Study, registry: Registry) -> None:
    accuracy = {"finetune": 0.8, "distill": 0.7, "rationale_input": 0.9}
    made.accuracy = lambda method, fraction, size: accuracy[method]
    outcome = package.promote(made.finish_all().config)
    assert outcome.moved
    assert (outcome.champion["method"], outcome.champion["fraction"]) == ("distill", 0.1), "the one of less data"
    assert read_json(made.config.directory / "champion.json") == outcome.champion
    assert registry.versions[outcome.champion["mlflow_run_id"]].tags["chosen_from"] == "2"
    text = " ".join(outcome.sentences)
    assert "Students of rationale_input read the teacher's rationale, and cannot be promoted." in text
    assert "finetune · 10 % · tiny · seed 0 has 80.0% against 70.0% on validation (80.0% against 70.0% on test)" in text
    assert "| test | 70.0% |" in registry.descriptions["1"]
    assert package.promote(made.config, all_methods=True).champion["method"] == "finetune"


@pytest.mark.parametrize(("present", "moved"), [(0.9, False), (0.7, False), (0.5, True)])
def test_a_champion_that_is_as_good_stays(
    made: Study, registry: Registry, monkeypatch: pytest.MonkeyPatch, present: float, moved: bool
) -> None:
    registry.promote(registry.register("another study's run", {"method": "cot_labelled", "fraction": "0.5"}).version)
    scored: list[Any] = []
    monkeypatch.setattr(package, "validation_accuracy", lambda plan, student, validation: scored.append(student) or present)
    outcome = package.promote(made.finish_all().config)
    assert scored == [f"models:/{made.config.tracking.registered_model}/1"]
    assert outcome.moved == moved
    assert outcome.champion["method"] == ("distill" if moved else "cot_labelled")
    assert registry.aliases == ({"champion": "2"} if moved else {"champion": "1", "challenger": "2"})


@pytest.mark.parametrize(("present", "moved"), [(0.9, False), (0.5, True)])
def test_the_champion_is_not_scored_on_what_it_was_trained_on(
    made: Study, registry: Registry, monkeypatch: pytest.MonkeyPatch, present: float, moved: bool
) -> None:
    registry.promote(registry.register("another study's run", {"fraction": "0.5"}).version)
    scored: dict[str, int] = {}

    def accuracy(plan: Any, student: str | Path, validation: pd.DataFrame) -> float:
        scored[str(student)] = len(validation)
        return present if str(student).startswith("models:/") else 0.7

    monkeypatch.setattr(package, "validation_accuracy", accuracy)
    monkeypatch.setattr(package, "was_seen", lambda folder, rows, splits: np.arange(len(rows)) < 15)
    outcome = package.promote(made.finish_all().config)
    assert list(scored.values()) == [5, 5], "both students, on the examples that the champion was not trained on"
    assert outcome.moved == moved
    monkeypatch.setattr(package, "was_seen", lambda folder, rows, splits: np.ones(len(rows), bool))
    registry.promote("1")
    outcome = package.promote(made.config)
    assert not outcome.moved
    assert "was trained on all validation examples of this study, on which the two cannot be compared: it stays" in " ".join(
        outcome.sentences
    )


def test_a_champion_of_another_task_is_not_replaced(made: Study, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.promote(registry.register("another study's run", {}).version)
    monkeypatch.setattr(package, "find_student", lambda uri: (Path("nowhere"), {"task": TICKETS.to_dict()}))
    with pytest.raises(
        CotdError, match=r"is of the task 'tickets' \(one of refund, bug, question\).*Set tracking\.registered_model"
    ):
        package.promote(made.finish_all().config)
    assert registry.aliases == {"champion": "1"}


def test_students_of_one_size_can_be_chosen(
    write_study: Callable[..., Path], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Study(write_study, {"method": ["distill"], "fraction": [1.0], "size": ["tiny", "small"], "seed": [0]})
    monkeypatch.setattr(package, "plan_study", lambda config: made.plan())
    made.accuracy = lambda method, fraction, size: 0.9 if size == "small" else 0.7
    assert package.promote(made.finish_all().config).champion["size"] == "small"
    registry.aliases.clear()
    assert package.promote(made.config, size="tiny").champion["size"] == "tiny"
    with pytest.raises(CotdError, match=r"--size 'tin' is not in the study's grid .* Did you mean 'tiny'"):
        package.promote(made.config, size="tin")


def test_any_student_gets_an_alias_beside_the_champion(
    write_study: Callable[..., Path], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Study(write_study, {"method": ["finetune", "distill"], "fraction": [1.0], "size": ["tiny", "small"], "seed": [0]})
    monkeypatch.setattr(package, "plan_study", lambda config: made.plan())
    made.accuracy = lambda method, fraction, size: 0.9 if size == "small" else 0.7
    first = package.promote(made.finish_all().config, size="tiny")
    large = package.promote(made.config, size="small", alias="large")
    assert (large.champion["size"], large.moved, registry.aliases) == ("small", True, {"champion": "1", "large": "2"})
    assert read_json(made.config.directory / "champion.json") == first.champion
    worse = next(t for t in made.trials if (t.method, t.size) == ("finetune", "tiny"))
    named = package.promote(made.config, trial_id=worse.id, alias="large")
    assert named.champion["method"] == "finetune"
    assert named.sentences[-1] == "models:/cotd-student@large is now version 3; it was version 2."
    with pytest.raises(CotdError, match=r"--trial 'none' is not a finished trial"):
        package.promote(made.config, trial_id="none")


def test_a_champion_that_another_study_promoted_meanwhile_is_compared_with(
    made: Study, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, run in enumerate(("present", "better"), 1):
        registry.register(run, {"fraction": "0.5", "method": run})
        assert registry.versions[run].version == str(number)
    registry.promote("1")

    def accuracy(plan: Any, student: str, validation: pd.DataFrame) -> float:
        registry.promote("2")
        return 0.6 if student.endswith("/1") else 0.9

    monkeypatch.setattr(package, "validation_accuracy", accuracy)
    outcome = package.promote(made.finish_all().config)
    assert (outcome.champion["method"], registry.aliases) == ("better", {"champion": "2", "challenger": "3"})


def test_promoting_again_changes_nothing(made: Study, registry: Registry) -> None:
    first = package.promote(made.finish_all().config)
    again = package.promote(made.config)
    assert not again.moved
    assert again.champion == first.champion | {"moved": False}
    assert "It is the champion already: version 1." in again.sentences


def test_a_study_with_no_distilled_student_says_so(made: Study, registry: Registry) -> None:
    made.finish(next(t for t in made.trials if t.method == "finetune"))
    with pytest.raises(CotdError, match=r"no finished distilled trial .* to promote\. Run `cotd sweep CONFIG` first"):
        package.promote(made.config)


@pytest.fixture
def rolled_out(
    write_study: Callable[..., Path], make_store: Callable[[Path], str], student_folder: Path, tmp_path: Path
) -> StudyConfig:
    """A study with three versions in a real registry: the second is the champion, the third reads rationales."""
    config = load_config(write_study(), [f"tracking.uri={make_store(tmp_path / 'mlflow.db')}"])
    registry = StudyTracker(config).registry
    registry.client.create_registered_model(registry.name)
    for number in (1, 2, 3):
        copy = shutil.copytree(student_folder, tmp_path / f"student-{number}")
        write_json(copy / "cotd.json", read_json(copy / "cotd.json") | {"rationale_as_input": number == 3})
        registry.client.create_model_version(registry.name, copy.as_uri(), tags={"method": "distill"})
    registry.promote("2")
    return config


def test_rolling_back_moves_the_alias(rolled_out: StudyConfig) -> None:
    outcome = package.promote_version(rolled_out, "1")
    assert outcome.moved
    assert outcome.sentences == ["models:/cotd-student@champion is now version 1; it was version 2."]
    assert StudyTracker(rolled_out).registry.champion().version == 1  # type: ignore[union-attr]
    assert read_json(rolled_out.directory / "champion.json")["model_uri"] == "models:/cotd-student/1"
    again = package.promote_version(rolled_out, "1")
    assert not again.moved
    assert again.sentences == ["models:/cotd-student@champion is version 1 already."]


def test_any_version_gets_an_alias_beside_the_champion(rolled_out: StudyConfig) -> None:
    outcome = package.promote_version(rolled_out, "1", alias="large")
    assert outcome.sentences == ["models:/cotd-student@large is now version 1."]
    registry = StudyTracker(rolled_out).registry
    assert [registry.alias(alias).version for alias in ("champion", "large")] == [2, 1]  # type: ignore[union-attr]
    assert not (rolled_out.directory / "champion.json").exists()
    for alias in ("v2", "latest", "challenger", "the best"):
        with pytest.raises(CotdError, match=f"'{alias}' cannot be an alias"):
            package.promote_version(rolled_out, "1", alias=alias)


def test_a_promotion_keeps_others_of_the_study_away(rolled_out: StudyConfig) -> None:
    with (
        package.one_at_a_time(rolled_out),
        pytest.raises(CotdError, match=r"another process is promoting a student of small .* then promote again"),
    ):
        package.promote_version(rolled_out, "1")
    assert package.promote_version(rolled_out, "1").moved


@pytest.mark.parametrize(
    ("number", "message"),
    [("7", r"models:/cotd-student has no version '7'\. Versions: 1, 2, 3\."), ("3", "reads the teacher's rationale")],
)
def test_a_version_that_cannot_serve_is_refused(rolled_out: StudyConfig, number: str, message: str) -> None:
    with pytest.raises(CotdError, match=message):
        package.promote_version(rolled_out, number)
    assert StudyTracker(rolled_out).registry.champion().version == 2  # type: ignore[union-attr]
