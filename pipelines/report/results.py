"""What a study has come to so far: its trials' figures and predictions, the teacher's, the baselines', and what is missing."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cotd.data.examples import select_fraction
from cotd.errors import CotdError
from cotd.evaluation.baselines import tfidf_regression
from cotd.evaluation.statistics import accuracy_interval, over_seeds, percentiles, resampled_accuracies
from cotd.storage.tracking_store import attempt
from cotd.study.config import StudyConfig
from cotd.study.grid import GridConfig
from cotd.tracking.runs import StudyTracker
from cotd.training.folder import TrialFolder
from cotd.training.methods import METHODS
from cotd.training.trial import Trial, readable
from cotd.utils.files import write_json
from cotd.utils.text import last_line
from pipelines.annotate.files import read_annotations
from pipelines.sweep.plan import Plan, plan_study


@dataclass(frozen=True)
class Results:
    """A study's finished trials, over the same test reviews.

    Attributes:
        gold: test review id → gold label.
        trials: one entry a finished trial, as in `report.json`, by size, method and fraction.
        correct: booleans of shape (trials, test reviews), in the order of `trials` and `gold`.
        teacher_correct: whether the teacher's own label of each test review is right, NaN where it was not asked; None
            without annotations.
        missing: trials that are not done, each with its `title`, `state` and `why`.
        notes: what else is missing, a sentence each.
        given_up: samples of a search that it gave up, and that are not missing.
    """

    gold: pd.Series
    trials: list[dict[str, Any]]
    correct: np.ndarray
    teacher_correct: np.ndarray | None
    missing: list[dict[str, str]]
    notes: list[str]
    given_up: int = 0


def plan_so_far(config: StudyConfig) -> tuple[Plan, list[str]]:
    """The study's plan, or, while it has no annotations, that of the methods which need none; and what it then leaves out.

    Raises:
        CotdError: the study cannot be planned for another reason, or no method goes without annotations.
    """
    waiting = [m for m in config.grid.all_values("method") if METHODS[m].needs_annotations]
    if not waiting or set(config.grid.method) <= set(waiting) or read_annotations(config) is not None:
        return plan_study(config), []
    plan = plan_study(config.model_copy(update={"grid": without(config.grid, waiting)}))
    return plan, [f"No annotations yet, which {', '.join(waiting)} need: run `cotd annotate CONFIG`, then `cotd sweep CONFIG`."]


def without(grid: GridConfig, methods: list[str]) -> GridConfig:
    """The grid less some methods, not all of its own."""
    left = [
        part if part.method is None else part.model_copy(update={"method": [m for m in part.method if m not in methods]})
        for part in grid.include
    ]
    own = [m for m in grid.method if m not in methods]
    return grid.model_copy(update={"method": own, "include": [part for part in left if part.method != []]})


def read_results(plan: Plan, notes: list[str]) -> Results:
    """Reads what is done, and finds out why the rest is not.

    Raises:
        CotdError: nothing is done, and there is no teacher to report either.
    """
    reviews = pd.read_parquet(plan.reviews)
    test = reviews[(reviews["split"] == "test") & reviews["label"].notna()]
    gold = test.set_index("id")["label"]
    tokens = teacher_tokens(plan, reviews)
    settings = {t.id: {key: readable(value) for key, value in t.varied.items()} for t in plan.trials}
    trials, rows, missing, given_up = [], [], [], 0
    for trial in sorted(plan.trials, key=lambda t: (*place(t, plan), setting_title(settings[t.id]), t.fraction, t.seed)):
        folder = plan.folder(trial)
        if folder.pruned and plan.config.search:
            given_up += 1
            continue
        if not folder.done:
            missing.append({"title": trial.title, **state_of(folder)})
            continue
        try:
            entry = trial_entry(trial, folder, settings[trial.id], tokens)
            row = correctness(folder.predictions, gold)
        except (OSError, ValueError, KeyError) as error:
            why = f"{type(error).__name__}: {error}. Delete {folder.path} and run `cotd sweep CONFIG` again"
            missing.append({"title": trial.title, "state": "unreadable", "why": why})
            continue
        trials.append(entry)
        rows.append(row)
    teacher_correct = teacher_row(plan, gold)
    if not trials and teacher_correct is None:
        raise CotdError(
            f"study {plan.config.name} has no finished trial to report. Run `cotd sweep CONFIG` first.",
            *(f"{m['title']}: {m['state']}: {m['why']}" for m in missing if m["state"] != "not started"),
        )
    notes = notes + log_runs(plan, trials)
    correct = np.stack(rows) if rows else np.empty((0, len(gold)), dtype=bool)
    return Results(gold, trials, correct, teacher_correct, missing, notes, given_up)


def place(trial: Trial, plan: Plan) -> tuple[int, int]:
    return list(plan.config.sizes).index(trial.size), list(METHODS).index(trial.method)


def setting_title(setting: dict[str, str]) -> str:
    """ "rationale_weight 1, samples 5"."""
    return ", ".join(f"{key} {value}" for key, value in setting.items())


def trial_entry(
    trial: Trial, folder: TrialFolder, setting: dict[str, str], tokens: dict[tuple[str, float], int | None]
) -> dict[str, Any]:
    """A finished trial as `report.json` lists it."""
    result = folder.result()
    test = result["test"]
    return {
        "method": trial.method, "fraction": trial.fraction, "size": trial.size, "seed": trial.seed, "settings": setting,
        "accuracy": test["accuracy"], "ci_low": test["ci_low"], "ci_high": test["ci_high"], "n_test": test["n"],
        "validation_accuracy": result["validation"]["accuracy"], "macro_f1": test["macro_f1"],
        "teacher_agreement": test.get("teacher_agreement"), "train_reviews": result["train_reviews"],
        "train_seconds": round(result["train_seconds"], 1), "parameters": result["parameters"], "model": trial.model,
        "teacher_tokens": tokens.get((trial.method, trial.fraction), 0), "trial_id": trial.id, "mlflow_run_id": None,
    }  # fmt: skip


def correctness(predictions: Path, gold: pd.Series) -> np.ndarray:
    """Whether each test review was predicted right, in the order of `gold`.

    Raises:
        ValueError: the predictions are of other reviews.
    """
    table = pd.read_parquet(predictions, columns=["review_id", "predicted"])
    predicted = dict(zip(table["review_id"], table["predicted"], strict=True))
    if predicted.keys() != set(gold.index):
        raise ValueError(f"predictions.parquet has {len(predicted)} reviews that are not the study's {len(gold)} test reviews")
    return np.array([predicted[i] == label for i, label in gold.items()])


def state_of(folder: TrialFolder) -> dict[str, str]:
    """Why a trial is not done."""
    if folder.error.is_file():
        why = last_line(folder.error.read_text(encoding="utf-8")) or "no reason given"
        return {"state": "failed", "why": f"{why} (see {folder.error})"}
    curve = folder.curve()
    if curve:
        return {"state": "unfinished", "why": f"running, or stopped after step {curve[-1]['step']:.0f}"}
    return {"state": "not started", "why": "run `cotd sweep CONFIG`"}


def teacher_row(plan: Plan, gold: pd.Series) -> np.ndarray | None:
    """1.0 where the teacher's own label is the gold one, 0.0 where it is not or there is none, NaN where it was not asked."""
    if plan.teacher_test is None or not plan.teacher_test.is_file():
        return None
    asked = pd.read_parquet(plan.teacher_test).drop_duplicates("review_id").set_index("review_id")["predicted"]
    own = asked.reindex(gold.index)
    return np.where(gold.index.isin(asked.index), (own == gold).fillna(False).to_numpy(dtype=float), np.nan)


def teacher_tokens(plan: Plan, reviews: pd.DataFrame) -> dict[tuple[str, float], int | None]:
    """(method, fraction) → tokens, read and written, of the annotations that such a student learns from.

    They are the same for every size and seed, and for every method that reads the same ones: they were written once. None where
    they are not known, as of answers that were read from a file; methods without annotations are left out.
    """
    if plan.annotations is None:
        return {}
    annotated = {t.method for t in plan.trials if METHODS[t.method].needs_annotations}
    if plan.config.teacher.answers:
        return {(t.method, t.fraction): None for t in plan.trials if t.method in annotated}
    table = pd.read_parquet(plan.annotations)
    table = table.assign(tokens=table["prompt_tokens"] + table["output_tokens"])
    train = reviews[reviews["split"] == "train"]
    tokens: dict[tuple[str, float], int | None] = {}
    for fraction in sorted({t.fraction for t in plan.trials}):
        of = table[table["review_id"].isin(select_fraction(train, fraction)["id"])].groupby("gold_conditioned")["tokens"].sum()
        for name in annotated:
            tokens[name, fraction] = int(of.get(METHODS[name].rationale == "given_gold", 0))
    return tokens


def log_runs(plan: Plan, trials: list[dict[str, Any]]) -> list[str]:
    """Fills in the trials' MLflow runs; a sentence where MLflow does not answer, which is no reason to report nothing."""
    if not trials:
        return []
    by_id = {t.id: t for t in plan.trials}

    def write() -> None:
        tracker = StudyTracker(plan.config)
        for entry in trials:
            entry["mlflow_run_id"] = tracker.sync_trial(by_id[entry["trial_id"]], plan.folder_of(entry["trial_id"]))

    try:
        problem = attempt(write)
    except CotdError as error:
        problem = str(error)
    return [f"MLflow was not told, and the trials' runs are not named here: {problem}"] if problem else []


def group_trials(results: Results) -> list[dict[str, Any]]:
    """Mean accuracy with its interval, and mean costs, for each size, method, setting and fraction, over its seeds."""
    places: dict[tuple[str, str, str, float], list[int]] = defaultdict(list)
    for i, trial in enumerate(results.trials):
        places[trial["size"], trial["method"], setting_title(trial["settings"]), trial["fraction"]].append(i)
    accuracies = resampled_accuracies(results.correct)
    rows = []
    for (size, method, setting, fraction), indices in places.items():
        members = [results.trials[i] for i in indices]
        if len(indices) == 1:
            accuracy, low, high = accuracy_interval(results.correct[indices[0]])
        else:
            accuracy = float(results.correct[indices].mean())
            low, high = percentiles(over_seeds(accuracies[:, indices]))
        agreements = [m["teacher_agreement"] for m in members if m["teacher_agreement"] is not None]
        rows.append(
            {
                "size": size, "method": method, "setting": setting, "settings": members[0]["settings"], "fraction": fraction,
                "seeds": len(members), "accuracy": accuracy, "ci_low": low, "ci_high": high,
                "macro_f1": float(np.mean([m["macro_f1"] for m in members])),
                "validation_accuracy": float(np.mean([m["validation_accuracy"] for m in members])),
                "teacher_agreement": float(np.mean(agreements)) if agreements else None,
                "train_reviews": members[0]["train_reviews"], "parameters": members[0]["parameters"],
                "model": members[0]["model"], "teacher_tokens": members[0]["teacher_tokens"],
                "train_seconds": round(float(np.mean([m["train_seconds"] for m in members])), 1), "trials": indices,
            }
        )  # fmt: skip
    return rows


def linear_baselines(plan: Plan, fractions: list[float], tested: pd.DataFrame | None = None) -> list[dict[str, Any]]:
    """`tfidf_regression` at each fraction, computed once for a study's reviews and kept in the study's folder.

    Args:
        tested: other reviews to test on than the study's own; these figures are not kept.
    """
    if tested is not None:
        own = pd.read_parquet(plan.reviews)
        both = pd.concat([own[own["split"] != "test"], tested.assign(split="test")], ignore_index=True)
        return [found for f in fractions if (found := tfidf_regression(both, f))]
    path = plan.reviews.with_name(plan.reviews.name.replace("reviews-", "tfidf-")).with_suffix(".json")
    known = {float(k): v for k, v in (read_json(path) or {}).items()}
    missing = [f for f in fractions if f not in known]
    if missing:
        reviews = pd.read_parquet(plan.reviews)
        known |= {f: tfidf_regression(reviews, f) for f in missing}
        write_json(path, known)
    return [known[f] for f in fractions if known[f]]


def read_json(path: Path) -> Any | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
