from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from cotd.study.config import StudyConfig
from cotd.tracking.runs import StudyTracker
from pipelines.promote import promote
from pipelines.sweep.plan import Plan


def test_versions_say_why_and_the_student_predicts(study: tuple[StudyConfig, Plan], tracker: StudyTracker) -> None:
    _, plan = study
    outcome = promote(tracker.config, all_methods=True)
    assert outcome.moved
    name = tracker.config.tracking.registered_model
    version = tracker.registry.champion()
    best = max((plan.folder(t).result() for t in plan.trials), key=lambda r: r["validation"]["accuracy"])
    assert version.tags["validation_accuracy"] == f"{best['validation']['accuracy']:.4f}"
    assert version.tags["chosen_from"] == "2"
    assert f"| test | {plan_test(plan, version.tags['trial_id'])['accuracy']:.1%} |" in version.description
    with warnings.catch_warnings(record=True) as written:
        model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    assert [w for w in written if w.category is UserWarning] == [], "nobody who loads a student can heed MLflow's hints"
    texts = ["A warm and funny film.", "Dull."]
    listed, framed = model.predict(texts), model.predict(pd.DataFrame({"text": texts}))
    pd.testing.assert_frame_equal(listed, framed)
    assert list(listed.columns) == ["label", "score", "truncated"] == model.metadata.signature.outputs.input_names()
    assert model.input_example is not None
    assert len(model.predict(model.input_example)) == 1
    missing = model.predict(pd.DataFrame({"text": [texts[0], None, float("nan"), " "]}))
    assert missing["label"].tolist() == [framed["label"][0], None, None, None]
    assert missing["score"].notna().tolist() == [True, False, False, False]
    with pytest.raises(Exception, match="no column 'text'"):
        model.predict(pd.DataFrame({"id": ["r1"]}))
    with pytest.raises(ValueError, match="a list in a cell of column 'text'"):
        model.predict({"text": texts})
    logged = tracker.client.get_logged_model(model.metadata.model_id)
    assert {m.key: m.value for m in logged.metrics}["test_accuracy"] == float(
        plan_test(plan, version.tags["trial_id"])["accuracy"]
    )
    assert logged.params["training.steps"] == "4"


def test_a_logged_student_carries_its_own_weights_and_no_others(study: tuple[StudyConfig, Plan], tracker: StudyTracker) -> None:
    _, plan = study
    folder = plan.folder(plan.trials[0])
    tracker.sync_trial(plan.trials[0], folder)
    uri = tracker.log_student(plan.trials[0], folder)
    assert uri is not None
    logged = Path(mlflow.artifacts.download_artifacts(uri))
    weights = [path.relative_to(logged).parts[:2] for path in logged.rglob("*.safetensors")]
    assert weights == [("artifacts", "student")]
    code = sum(path.stat().st_size for path in (logged / "code").rglob("*") if path.is_file())
    assert code < 3_000_000


def plan_test(plan: Plan, trial_id: str) -> dict[str, Any]:
    return plan.folder_of(trial_id).result()["test"]
