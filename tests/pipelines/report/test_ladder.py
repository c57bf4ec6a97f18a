"""The ladder: one line a rung, all on the study's own test examples where that is known."""

from __future__ import annotations

from typing import Any

from pipelines.annotate.files import AnnotationFiles
from pipelines.report.ladder import GOLD, KEYS, add_rungs, ladder_of, ladder_rows
from tests.pipelines.report.studies import Make, content

FIRST = {"model": "embedded:llm", "accuracy": 0.6, "ci_low": 0.5, "ci_high": 0.7, "n": 50, "parameters": 7_000_000_000}


def test_teachers_of_teachers_come_first_and_the_best_student_of_each_size_last(study: Make) -> None:
    made = study(method=["finetune", "distill"], size=["tiny", "small"])
    made.accuracy = lambda method, fraction, size: 0.75 if (method, size) == ("finetune", "tiny") else 0.7 + fraction / 20
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
