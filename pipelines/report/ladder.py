"""The ladder: who taught whom, a rung each, from the first teacher down to the study's own students."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from cotd.evaluation.cascade import (
    ESCALATED,
    POINTS,
    WITHIN,
    cascade_predictions,
    operating_points,
    threshold_auto,
    threshold_within,
    validated_answers,
)
from cotd.evaluation.metrics import score_predictions
from cotd.evaluation.statistics import accuracy_metrics
from cotd.students.base_models import weights_bytes
from cotd.study.config import StudyConfig
from cotd.training.methods import METHODS
from cotd.utils.files import read_json, write_json
from pipelines.annotate.files import AnnotationFiles, read_teacher_test
from pipelines.report.formatting import accuracy, short
from pipelines.report.results import Content, Results, need_no_teacher
from pipelines.sweep.plan import Plan

# An entry of `report.json`'s `ladder`. What is not known is None: latencies in milliseconds, bytes of weights, and what a million
# texts cost, in the currency of teacher.budget. `taught_by` is another rung's name, or GOLD.
Rung = dict[str, Any]
KEYS = (
    "name", "taught_by", "parameters", "accuracy", "ci_low", "ci_high", "n", "median_ms", "p95_ms", "weights_bytes",
    "cost_of_a_million",
)  # fmt: skip
GOLD = "gold labels"
CASCADE = "cascade"
FILE = "rungs.json"
HEADER = ["rung", "taught by", "parameters", "accuracy", "median, ms", "95th percentile, ms", "weights, MB", "a million texts"]


def add_rungs(config: StudyConfig, rungs: Sequence[Rung]) -> None:
    """Keeps rungs that only a measurement knows, such as a cascade's, or more about one of the report's own, for its next report.

    Args:
        rungs: entries with a `name`, by which they are told apart, and any other of KEYS.
    """
    path = config.directory / FILE
    known = {rung["name"]: rung for rung in (read_json(path) if path.is_file() else [])}
    for rung in rungs:
        known[rung["name"]] = known.get(rung["name"], {}) | rung
    write_json(path, list(known.values()))


def ladder_of(plan: Plan, content: Content, results: Results, summary: dict[str, Any] | None) -> list[Rung]:
    """The rungs: teachers, what was measured besides, and the best student by validation of each size.

    Args:
        summary: of the annotations; None if there are none.
    """
    teachers = list(teacher_rungs(plan.config, content["teacher"], results, summary))
    students = list(student_rungs(plan, content, teachers[-1]["name"] if teachers else None))
    path = plan.config.directory / FILE
    measured = {rung["name"]: rung for rung in (read_json(path) if path.is_file() else [])}
    if content["cascade"] and content["cascade"]["larger"]:
        together = blank(CASCADE) | {key: content["cascade"][key] for key in KEYS if key in content["cascade"]}
        measured[CASCADE] = together | measured.get(CASCADE, {})
    own = [rung | measured.pop(rung["name"], {}) for rung in (*teachers, *students)]
    others = [blank(rung["name"]) | rung for rung in measured.values()]
    return [*own[: len(teachers)], *others, *own[len(teachers) :]]


def cascade_of(plan: Plan, content: Content) -> dict[str, Any] | None:
    """The champion with the best larger student of its study behind it, as `report.json` has it under `cascade`.

    The threshold is that of `cotd serve --escalate LARGER --below auto`, chosen on validation.

    Returns:
        `student`, the champion's name, and `curve` (see `risk_coverage`); `larger`, None unless a larger student is better on
        validation. If one is: `parameters` of both; `together`, the points (see `Operating`) of both on validation, some POINTS of
        them; `auto` and `within`, those of the two rules; `escalated` (the share of the test examples that is handed on), and the
        metrics of `score_predictions` on test. None without a champion of this study.
    """
    run = (content["champion"] or {}).get("mlflow_run_id")
    champion = next((t for t in content["trials"] if run and t["mlflow_run_id"] == run), None)
    curve = plan.folder_of(champion["trial_id"]).result().get("risk_coverage") if champion else None
    if champion is None or not curve:
        return None
    name = f"{champion['size']}, {champion['method']}"
    larger = max(
        (t for t in need_no_teacher(content["trials"]) if t["parameters"] > champion["parameters"]),
        key=lambda t: t["validation_accuracy"],
        default=champion,
    )
    if larger["validation_accuracy"] <= champion["validation_accuracy"]:
        return {"student": name, "larger": None, "curve": curve}
    folders = [plan.folder_of(trial["trial_id"]) for trial in (champion, larger)]
    points = operating_points(*(validated_answers(pd.read_parquet(folder.validation)) for folder in folders))
    by_threshold = {point.threshold: list(point) for point in points}
    auto, within = (by_threshold[t] for t in (threshold_auto(points), threshold_within(points, WITHIN)))
    own, others = (pd.read_parquet(folder.predictions) for folder in folders)
    table = cascade_predictions(own, others, auto[0])
    return {
        "student": name, "larger": f"{larger['size']}, {larger['method']}",
        "parameters": champion["parameters"] + larger["parameters"], "curve": curve,
        "together": list(by_threshold.values())[:: len(points) // POINTS + 1], "auto": auto, "within": within,
        "escalated": float((table["answered_by"] == ESCALATED).mean()), **score_predictions(table, plan.config.task),
    }  # fmt: skip


def blank(name: str) -> Rung:
    return dict.fromkeys(KEYS) | {"name": name}


def teacher_rungs(
    config: StudyConfig, entry: dict[str, Any] | None, results: Results, summary: dict[str, Any] | None
) -> Iterator[Rung]:
    """The study's teacher and, if that is a student, its teacher, and so on; the first of all comes first.

    Args:
        entry: the study's teacher on its test examples.
    """
    chain: list[tuple[dict[str, Any], str | None]] = []  # what is known of a teacher, and the study that asked it
    teacher = summary["teacher"] if summary else None
    study: str | None = config.name
    while teacher:
        chain.append((teacher, study))
        student = teacher.get("student") or {}
        teacher, study = student.get("teacher"), student.get("study")
    above = None
    for number, (teacher, study) in reversed(list(enumerate(chain))):
        name = teacher_name(teacher)
        figures = entry if number == 0 else scores_of(config, teacher, study, results)
        if figures:
            taught_by = above if learns_from_teacher((teacher.get("student") or {}).get("method")) else GOLD
            known = {key: figures.get(key, teacher.get(key)) for key in KEYS[2:]}
            yield blank(name) | known | {"taught_by": taught_by if "student" in teacher else None}
            above = name


def learns_from_teacher(method: str | None) -> bool:
    """Whether a teacher contributes to what a student of a method learns."""
    return method in METHODS and METHODS[method].needs_annotations


def teacher_name(teacher: dict[str, Any]) -> str:
    """What a rung is called: a student by its size and method, any other by its model."""
    student = teacher.get("student")
    return f"{student['size']}, {student['method']}" if student else str(teacher["model"])


def scores_of(config: StudyConfig, teacher: dict[str, Any], study: str | None, results: Results) -> dict[str, Any] | None:
    """A teacher's accuracy on the study's test examples if another study asked it about them all, else on those it was asked about."""
    files = AnnotationFiles.of(config.model_copy(update={"name": study})) if study else None
    if files and files.teacher_test.is_file():
        labels = read_teacher_test(files.teacher_test) or {}
        asked = set(pd.read_parquet(files.teacher_test, columns=["example_id"])["example_id"])
        if asked >= set(results.gold.index):
            correct = (results.gold.index.map(labels).to_numpy() == results.gold.to_numpy()).astype(bool)
            return teacher | accuracy_metrics(correct, results.groups)
    return teacher if teacher.get("accuracy") is not None and "ci_low" in teacher else None


def student_rungs(plan: Plan, content: Content, teacher: str | None) -> Iterator[Rung]:
    """The best group by validation of each size, the largest student first."""
    best: dict[str, dict[str, Any]] = {}
    for group in sorted(need_no_teacher(content["groups"]), key=lambda g: g["validation_accuracy"]):
        best[group["size"]] = group
    champion, latency = content["champion"] or {}, content["serving"] or {}
    for group in sorted(best.values(), key=lambda g: -g["parameters"]):
        served = (champion.get("size"), champion.get("method")) == (group["size"], group["method"])
        trial = content["trials"][group["trials"][0]]
        folder = plan.folder_of(trial["trial_id"]).student
        yield blank(f"{group['size']}, {group['method']}") | {
            **{key: group[key] for key in ("parameters", "accuracy", "ci_low", "ci_high")},
            "taught_by": teacher if learns_from_teacher(group["method"]) else GOLD, "n": content["test_examples"],
            "median_ms": latency.get("p50_ms") if served else None, "p95_ms": latency.get("p95_ms") if served else None,
            "weights_bytes": weights_bytes(str(folder)) if folder.is_dir() else None,
        }  # fmt: skip


def ladder_rows(rungs: Sequence[Rung]) -> list[list[str]]:
    """The rungs as rows of a table, the header first, without columns in which nothing is known."""
    rows = [
        [
            rung["name"], rung["taught_by"] or "",
            short(rung["parameters"]) if rung["parameters"] else "", accuracy(rung) if rung["accuracy"] is not None else "",
            f"{rung['median_ms']:.1f}" if rung["median_ms"] else "", f"{rung['p95_ms']:.1f}" if rung["p95_ms"] else "",
            f"{rung['weights_bytes'] / 1e6:,.0f}" if rung["weights_bytes"] else "",
            f"{rung['cost_of_a_million']:,.2f}" if rung["cost_of_a_million"] is not None else "",
        ]
        for rung in rungs
    ]  # fmt: skip
    kept = [column for column in range(len(HEADER)) if any(row[column] for row in rows)]
    return [[row[column] for column in kept] for row in [HEADER, *rows]]
