"""Chooses the champion: the best distilled student of a study, by validation accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from cotd.errors import CotdError
from cotd.evaluation.metrics import predictions_table, score_predictions
from cotd.storage.sync import sync_study
from cotd.students.student import Student
from cotd.study.config import StudyConfig
from cotd.tasks.registry import get_task
from cotd.tracking.registry import CHALLENGER, CHAMPION
from cotd.tracking.runs import StudyTracker
from cotd.training.folder import merit
from cotd.training.methods import METHODS
from cotd.training.trial import Trial
from cotd.utils.files import write_json
from pipelines.sweep.plan import Plan, plan_study


@dataclass(frozen=True)
class Promotion:
    """What `promote` decided.

    Attributes:
        champion: whoever holds the alias now: method, fraction, size, seed, mlflow_run_id, model_uri, version, moved.
        moved: whether the alias was moved.
        sentences: what happened, for the terminal.
    """

    champion: dict[str, Any]
    moved: bool
    sentences: list[str]


@sync_study
def promote(config: StudyConfig, all_methods: bool = False) -> Promotion:
    """Registers the best student by validation accuracy and moves the alias `champion` to it.

    Students that read the teacher's rationales are passed over: they cannot answer without it. The test split plays no
    part. The alias stays where the present champion is better on the same validation reviews.

    Args:
        all_methods: choose among all methods; otherwise among those that a teacher contributes to.

    Raises:
        CotdError: no finished trial to choose from.
    """
    plan = plan_study(config)
    finished = [(t, plan.folder(t).result()) for t in plan.trials if plan.folder(t).done]
    readers = sorted({t.method for t, _ in finished if METHODS[t.method].rationale_as_input})
    passed_over = (
        f"Students of {' and '.join(readers)} read the teacher's rationale, and cannot be promoted." if readers else ""
    )
    alone = [(t, r) for t, r in finished if not METHODS[t.method].rationale_as_input]
    eligible = [(t, r) for t, r in alone if all_methods or METHODS[t.method].distilled]
    if not eligible:
        kind = "trial" if all_methods else "distilled trial (distill, cot_*; --all-methods for the others too)"
        raise CotdError(
            f"study {config.name} has no finished {kind} to promote. Run `cotd sweep CONFIG` first. {passed_over}".strip()
        )
    # Equal accuracies are common on a few hundred rows: the better ranking, then the least training data, decides.
    trial, result = max(eligible, key=lambda e: (*merit(e[1]), -e[0].fraction, e[0].id))
    accuracy = result["validation"]["accuracy"]
    tracker = StudyTracker(config)
    run_id = tracker.sync_trial(trial, plan.folder(trial))
    tags = {
        "trial_id": trial.id, "method": trial.method, "fraction": str(trial.fraction), "size": trial.size,
        "seed": str(trial.seed), "study": config.name, "source": config.data.source_name,
        "chosen_by": "validation_accuracy", "chosen_from": str(len(eligible)),
        **{f"{split}_{k}": f"{result[split][k]:.4f}" for split in ("validation", "test") for k in ("accuracy", "ci_low", "ci_high")},
        **{f"{split}_n": str(result[split]["n"]) for split in ("validation", "test")},
    }  # fmt: skip
    registry = tracker.registry
    incumbent = registry.champion()
    version = registry.register(run_id, tags)
    name = config.tracking.registered_model
    sentences = [f"Best by validation: {trial.title}, {accuracy:.1%} of {result['validation']['n']} reviews."]
    sentences += [passed_over] if passed_over else []
    moved = True
    if incumbent is not None and str(incumbent.version) != str(version.version):
        incumbent_accuracy = validation_accuracy(plan, f"models:/{name}/{incumbent.version}")
        if incumbent_accuracy > accuracy:
            moved = False
            sentences.append(
                f"The present champion, version {incumbent.version}, has {incumbent_accuracy:.1%} on the same reviews: "
                f"it stays. The new student is version {version.version}, models:/{name}@{CHALLENGER}."
            )
            registry.set_challenger(version.version)
    elif incumbent is not None:
        moved = False
        sentences.append(f"It is the champion already: version {version.version}.")
    if moved:
        registry.promote(version.version)
        sentences.append(f"models:/{name}@{CHAMPION} is now version {version.version}.")
    sentences += gold_comparison(finished, trial, result)
    if moved or incumbent is None or str(incumbent.version) != str(version.version):
        registry.describe(version.version, justification(config, result, sentences))
    holder = incumbent if incumbent is not None and not moved else version
    champion = {
        **{key: holder.tags.get(key) for key in ("method", "size", "study", "validation_accuracy", "test_accuracy")},
        "fraction": float(holder.tags.get("fraction", "nan")), "seed": holder.tags.get("seed"), "mlflow_run_id": holder.run_id,
        "model_uri": f"models:/{name}/{holder.version}", "version": str(holder.version), "moved": moved,
    }  # fmt: skip
    write_json(config.directory / "champion.json", champion)
    return Promotion(champion, moved, sentences)


def justification(config: StudyConfig, result: dict[str, Any], sentences: list[str]) -> str:
    """What a version's page says of it, in Markdown: its metrics with their intervals, and what was decided."""
    rows = [
        f"| {split} | {m['accuracy']:.1%} | [{m['ci_low']:.1%}, {m['ci_high']:.1%}] | {m['n']:,} |"
        for split, m in ((s, result[s]) for s in ("validation", "test"))
    ]
    table = ["| split | accuracy | 95 % interval | reviews |", "|---|---|---|---|", *rows]
    return "\n".join([*(f"{s}\n" for s in sentences), *table, "", f"Study `{config.name}` on `{config.data.source_name}`."])


def gold_comparison(finished: list[tuple[Trial, dict[str, Any]]], chosen: Trial, result: dict[str, Any]) -> list[str]:
    """A sentence where finetuning on gold beat the chosen distilled student on validation."""
    gold = [(t, r) for t, r in finished if not METHODS[t.method].distilled]
    if not gold or not METHODS[chosen.method].distilled:
        return []
    trial, best = max(gold, key=lambda e: merit(e[1]))
    ours, theirs = result["validation"]["accuracy"], best["validation"]["accuracy"]
    if theirs <= ours:
        return []
    return [
        f"Finetuning on gold beat it: {trial.title} has {theirs:.1%} on validation against {ours:.1%} "
        f"(test: {best['test']['accuracy']:.1%} against {result['test']['accuracy']:.1%}). --all-methods would choose that one."
    ]


def validation_accuracy(plan: Plan, model_uri: str) -> float:
    """A registered student's accuracy on this study's validation reviews."""
    reviews = pd.read_parquet(plan.reviews)
    validation = reviews[(reviews["split"] == "validation") & reviews["label"].notna()]
    student = Student.load(model_uri)
    task = get_task(plan.config.data.task)
    return float(score_predictions(predictions_table(student, validation), task.positive)["accuracy"])
