"""The ladder: one line a rung, all on the study's own test examples where that is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.annotate.files import AnnotationFiles
from pipelines.report.figures import figures_of
from pipelines.report.ladder import GOLD, KEYS, add_rungs, cascade_of, ladder_of, ladder_rows
from pipelines.report.text import markdown
from tests.pipelines.report.studies import Make, content

FIRST = {"model": "embedded:llm", "accuracy": 0.6, "ci_low": 0.5, "ci_high": 0.7, "n": 50, "parameters": 7_000_000_000}


def test_teachers_of_teachers_come_first_and_the_best_student_of_each_size_last(study: Make) -> None:
    made = study(method=["finetune", "distill"], size=["tiny", "small"])
    made.accuracy = lambda method, fraction, size: 0.8 if (method, size) == ("finetune", "tiny") else 0.7 + fraction / 20
    made.finish_all()
    taught = {"study": "small-adapted", "method": "cot_after", "size": "smol", "teacher": FIRST}
    summary = {"teacher": {"model": "stage:adapted", "n": 200, "parameters": 135_000_000, "student": taught}}
    whole = content(made)
    whole["champion"], whole["serving"] = {"size": "tiny", "method": "finetune"}, {"p50_ms": 3.5, "p95_ms": 4.5}

    def rungs() -> list[dict[str, Any]]:
        return ladder_of(made.plan(), whole, made.results(), summary)

    first, teacher, small, tiny = rungs()
    assert (first["name"], first["accuracy"], first["n"], first["taught_by"]) == ("embedded:llm", 0.6, 50, None)
    assert (teacher["name"], teacher["taught_by"], teacher["accuracy"]) == ("smol, cot_after", "embedded:llm", 0.8)
    assert small["taught_by"] in (teacher["name"], GOLD)
    assert (tiny["name"], tiny["taught_by"], tiny["median_ms"], tiny["p95_ms"]) == ("tiny, finetune", GOLD, 3.5, 4.5)
    assert all(set(KEYS) == set(rung) for rung in rungs())

    other = AnnotationFiles.of(made.config.model_copy(update={"name": "small-adapted"}))
    other.directory.mkdir(parents=True)
    made.predictions(made.right(0.9, 1)).to_parquet(other.teacher_test)
    assert (rungs()[0]["accuracy"], rungs()[0]["n"]) == (0.9, 200), "it was asked about the same examples there"

    add_rungs(made.config, [{"name": "cascade", "accuracy": 0.78, "ci_low": 0.7, "ci_high": 0.8, "median_ms": 6.0}])
    add_rungs(made.config, [{"name": "tiny, finetune", "median_ms": 2.0}, {"name": "cascade", "p95_ms": 9.0}])
    assert [rung["name"] for rung in rungs()][2:] == ["cascade", small["name"], "tiny, finetune"]
    assert (rungs()[2]["median_ms"], rungs()[2]["p95_ms"], rungs()[-1]["median_ms"]) == (6.0, 9.0, 2.0)
    header, *rows = ladder_rows(rungs())
    assert header[:4] == ["rung", "taught by", "parameters", "accuracy"]
    assert "a million texts" not in header, "nobody knows what one costs"
    assert rows[1][:3] == ["smol, cot_after", "embedded:llm", "135 M"]


def test_a_champion_with_a_larger_student_behind_it_is_a_rung(study: Make) -> None:
    made = study(method=["distill"], size=["tiny", "small"])
    made.accuracy = lambda method, fraction, size: 0.9 if size == "small" else 0.7
    made.finish_all()
    whole = content(made)
    assert whole["cascade"] is None, "there is no champion yet"
    tiny = next(t for t in made.trials if t.size == "tiny" and t.fraction == 1.0)
    for trial in made.trials:
        folder = made.plan().folder(trial)
        table = pd.read_parquet(folder.predictions)
        sure = np.where(table["gold"] == table["predicted"], 0.9, 0.6)  # it is unsure of what it has wrong
        table = table.assign(score=sure, probability_negative=0.5, probability_positive=0.5)
        table.to_parquet(folder.predictions)
        table.assign(example_id=[f"{int(i[1:]):016x}" for i in table["example_id"]]).to_parquet(folder.validation)
        folder.write_result(folder.result() | {"risk_coverage": [[0.9, 0.7, 1.0], [0.6, 1.0, 0.7]]})
    for entry in whole["trials"]:
        entry["mlflow_run_id"] = entry["trial_id"]
    whole["champion"] = {
        "mlflow_run_id": tiny.id,
        "method": "distill",
        "size": "tiny",
        "fraction": 1.0,
        "model_uri": "models:/c/1",
    }
    cascade = whole["cascade"] = cascade_of(made.plan(), whole)
    assert cascade is not None
    assert (cascade["student"], cascade["larger"]) == ("tiny, distill", "small, distill")
    threshold, share, accuracy = cascade["auto"]
    assert (threshold, share) == (0.9, pytest.approx(0.3))
    assert accuracy >= cascade["together"][0][2] - 0.01 > cascade["together"][-1][2]
    assert cascade["escalated"] == pytest.approx(0.3)
    assert 0.9 <= cascade["accuracy"] <= 1.0
    rung = next(r for r in ladder_of(made.plan(), whole, made.results(), None) if r["name"] == "cascade")
    assert (rung["accuracy"], rung["parameters"]) == (cascade["accuracy"], 68_000_000)
    assert "hands the other 30.0% of the test examples on to `small, distill`" in markdown(whole)
    assert "within=0.01" not in markdown(whole)
    whole["cascade"] = cascade | {"within": [0.95, 0.7, accuracy]}
    assert "they would hand on 70%: `--below within=0.01`" in markdown(whole)
    assert any(figure.file == "risk_coverage.png" and figure.draw(whole) for figure in figures_of(whole))
