"""From a trained student to its report and champion, for every kind of task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from cotd.study.config import load_config
from cotd.tracking.runs import StudyTracker
from pipelines.promote import promote
from pipelines.report.run import report
from pipelines.status import study_status
from pipelines.train import train

WORDS = {
    "labels": ("headline → one of sky, sea, land", "TF-IDF + logistic regression"),
    "options": ("question → one of its options", "TF-IDF similarity of text and option"),
    "numbers": ("problem → a number", "most common number"),
}


@pytest.mark.integration
@pytest.mark.parametrize("kind", list(WORDS))
def test_a_student_is_reported_promoted_and_found(
    write_kind: Callable[..., Path], make_store: Callable[[Path], str], tiny_t5: Path, tmp_path: Path, kind: str
) -> None:
    settings: dict[str, Any] = {
        "sizes": {"tiny": str(tiny_t5)}, "training": {"steps": 2, "eval_every": 2, "batch_size": 8},
        "grid": {"method": ["finetune"], "fraction": [1.0], "size": ["tiny"], "seed": [0]},
        "tracking": {"uri": make_store(tmp_path / "runs" / "mlflow.db")},
    }  # fmt: skip
    config = load_config(write_kind(kind, **settings))
    result = train(config).result()
    outcome = promote(config, all_methods=True)
    content = report(config)
    text = (config.directory / "report.md").read_text()
    assert content["test_examples"] == result["test"]["n"] == 12
    assert WORDS[kind][0] in text
    assert content["trials"][0]["mlflow_run_id"] == outcome.champion["mlflow_run_id"]
    names = {content["majority"]["name"], *(b["name"] for b in content["tfidf"])}
    assert WORDS[kind][1] in names
    assert ("## By label" in text) == ((config.directory / "confusion.png").is_file()) == (kind == "labels")
    assert ("answered" in text) == (kind == "numbers")
    assert ("macro F1" in text) == (kind == "labels")
    assert "review" not in text.replace("reviews.csv", ""), "an example is called what the task calls it"
    assert "sentiment" not in text

    run = StudyTracker(config).client.get_run(outcome.champion["mlflow_run_id"])
    assert ("test_macro_f1" in run.data.metrics, "test_answered" in run.data.metrics) == (kind == "labels", kind == "numbers")
    assert run.data.tags["task"] == config.task.name
    status = study_status(config)
    assert (status["trials"]["done"], status["champion"]["version"], status["next"]) == (1, "1", "serve")

    model = mlflow.pyfunc.load_model(outcome.champion["model_uri"])
    frame = pd.DataFrame({"text": ["Something new", None]})
    if kind == "options":
        frame["choices"] = [["this", "that"], ["one", "two"]]
    predicted = model.predict(frame)
    assert predicted["label"][1] is None
    if kind == "options":
        assert predicted["label"][0] in ("this", "that")
