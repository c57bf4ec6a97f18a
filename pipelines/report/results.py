"""What a study has so far: the results of its trials, its teacher and its baselines, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cotd.data.examples import select_fraction
from cotd.errors import CotdError
from cotd.evaluation.baselines import majority, tfidf_baseline
from cotd.evaluation.statistics import accuracy_interval, group_codes, over_seeds, percentiles, resampled_accuracies
from cotd.storage.tracking_store import attempt
from cotd.study.config import StudyConfig
from cotd.study.grid import GridConfig
from cotd.tracking.runs import StudyTracker
from cotd.training.folder import TrialFolder
from cotd.training.methods import METHODS
from cotd.training.trial import Trial, format_setting
from cotd.utils.files import read_json, write_json
from cotd.utils.text import last_line
from pipelines.annotate.files import read_annotations
from pipelines.other_settings import describe_others, finished_elsewhere
from pipelines.sweep.plan import Plan, plan_study

# What `report.json` holds, and one of its `groups`: the seeds of a size, method, setting and fraction.
Content = dict[str, Any]
Group = dict[str, Any]
# Of a trial, if its task has them.
MEASURED = ("macro_f1", "answered", "teacher_agreement", "validation_roc_auc")


@dataclass(frozen=True)
class Results:
    """A study's finished trials, all on the same test examples.

    Attributes:
        gold: test example id → gold label.
        groups: the numbers of the test examples' groups, see `group_codes`; None if they have none.
        trials: one entry a finished trial, as in `report.json`, by size, method and fraction.
        correct: booleans of shape (trials, test examples), in the order of `trials` and `gold`.
        teacher_correct: 1.0 where the teacher's label is right, 0.0 where it is wrong or missing, NaN where the teacher did not
            get the example; None without annotations.
        missing: trials that are not done, each with its `title`, `state` and `why`.
        notes: what else is missing, a sentence each.
        given_up: how many samples a search pruned; they are not missing.
    """

    gold: pd.Series
    trials: list[dict[str, Any]]
    correct: np.ndarray
    teacher_correct: np.ndarray | None
    missing: list[dict[str, str]]
    notes: list[str]
    given_up: int = 0
    groups: np.ndarray | None = None


def plan_so_far(config: StudyConfig) -> tuple[Plan, list[str]]:
    """The study's plan; while it has no annotations, that of the methods that need none, and a note on what is left out.

    Raises:
        CotdError: the study cannot be planned for another reason, or all its methods need annotations.
    """
    waiting = [m for m in config.grid.all_values("method") if METHODS[m].needs_annotations]
    if not waiting or set(config.grid.method) <= set(waiting) or read_annotations(config) is not None:
        return plan_study(config), []
    plan = plan_study(config.model_copy(update={"grid": without_methods(config.grid, waiting)}))
    return plan, [f"No annotations yet, which {', '.join(waiting)} need: run `cotd annotate CONFIG`, then `cotd sweep CONFIG`."]


def without_methods(grid: GridConfig, methods: list[str]) -> GridConfig:
    """The grid without some methods; at least one of its own must be left."""

    def left(names: list[str]) -> list[str]:
        return [name for name in names if name not in methods]

    parts = [p if p.method is None else p.model_copy(update={"method": left(p.method)}) for p in grid.include]
    return grid.model_copy(update={"method": left(grid.method), "include": [p for p in parts if p.method != []]})


def read_results(plan: Plan, notes: list[str]) -> Results:
    """Reads what is done, and finds out why the rest is not.

    Raises:
        CotdError: nothing is done, and there is no teacher to report either.
    """
    examples = pd.read_parquet(plan.examples)
    tested = labelled_test(examples)
    gold = tested.set_index("id")["label"]
    tokens = teacher_tokens(plan, examples)
    sizes, methods = list(plan.config.sizes), list(METHODS)
    trials, rows, missing, given_up = [], [], [], 0
    order = [(sizes.index(t.size), methods.index(t.method), t.variant, t.fraction, t.seed) for t in plan.trials]
    for _, trial in sorted(zip(order, plan.trials, strict=True), key=itemgetter(0)):
        folder = plan.folder(trial)
        if folder.pruned and plan.config.search:
            given_up += 1
            continue
        if not folder.done:
            missing.append({"title": trial.title, **state_of(folder)})
            continue
        try:
            entry = trial_entry(trial, folder, tokens.get((trial.method, trial.fraction), 0))
            rows.append(correctness(folder.predictions, gold))
            trials.append(entry)
        except (OSError, ValueError, KeyError) as error:
            why = f"{type(error).__name__}: {error}. Delete {folder.path} and run `cotd sweep CONFIG` again"
            missing.append({"title": trial.title, "state": "unreadable", "why": why})
    teacher_correct = teacher_correctness(plan, gold)
    others = finished_elsewhere(plan.config, (t.id for t in plan.trials))
    if not trials and (teacher_correct is None or others):
        raise CotdError(
            f"study {plan.config.name} has no finished trial to report. Run `cotd sweep CONFIG` first.",
            *(f"{m['title']}: {m['state']}: {m['why']}" for m in missing if m["state"] != "not started"),
            *([describe_others(plan.config, others)] if others else []),
        )
    notes = notes + log_runs(plan, trials) + ([describe_others(plan.config, others)] if others and missing else [])
    return Results(gold, trials, stack(rows, gold), teacher_correct, missing, notes, given_up, group_codes(tested.get("group")))


def labelled_test(examples: pd.DataFrame) -> pd.DataFrame:
    """The test examples that have gold labels."""
    return examples[(examples["split"] == "test") & examples["label"].notna()]


def stack(rows: list[np.ndarray], gold: pd.Series) -> np.ndarray:
    """The rows as one array of shape (trials, test examples), also where there is none."""
    return np.stack(rows) if rows else np.empty((0, len(gold)), dtype=bool)


def trial_entry(trial: Trial, folder: TrialFolder, tokens: int | None) -> dict[str, Any]:
    """A finished trial as `report.json` lists it."""
    result = folder.result()
    test = result["test"]
    settings = {key: format_setting(value) for key, value in trial.overrides.items()}
    return {
        "method": trial.method, "fraction": trial.fraction, "size": trial.size, "seed": trial.seed, "settings": settings,
        "accuracy": test["accuracy"], "ci_low": test["ci_low"], "ci_high": test["ci_high"], "n_test": test["n"],
        "validation_accuracy": result["validation"]["accuracy"], "validation_roc_auc": result["validation"].get("roc_auc"),
        "macro_f1": test.get("macro_f1"), "answered": test.get("answered"), "temperature": result.get("temperature"),
        "teacher_agreement": test.get("teacher_agreement"), "train_examples": result["train_examples"],
        "train_seconds": round(result["train_seconds"], 1), "parameters": result["parameters"], "model": trial.model,
        "teacher_tokens": tokens, "trial_id": trial.id, "mlflow_run_id": None,
        "curve": [[int(point["step"]), point["validation_accuracy"]] for point in folder.curve()],
    }  # fmt: skip


def correctness(predictions: Path, gold: pd.Series) -> np.ndarray:
    """Whether each test example was predicted right, in the order of `gold`.

    Raises:
        ValueError: the predictions are of other examples.
    """
    table = pd.read_parquet(predictions, columns=["example_id", "predicted"])
    predicted = dict(zip(table["example_id"], table["predicted"], strict=True))
    if predicted.keys() != set(gold.index):
        raise ValueError(
            f"predictions.parquet has {len(predicted)} examples that are not the study's {len(gold)} test examples"
        )
    return np.array([predicted[i] == label for i, label in gold.items()])


def state_of(folder: TrialFolder) -> dict[str, str]:
    """Why a trial is not done."""
    if folder.error.is_file():
        why = last_line(folder.error.read_text(encoding="utf-8")) or "no reason given"
        return {"state": "failed", "why": f"{why} (see {folder.error})"}
    if curve := folder.curve():
        return {"state": "unfinished", "why": f"running, or stopped after step {curve[-1]['step']:.0f}"}
    return {"state": "not started", "why": "run `cotd sweep CONFIG`"}


def teacher_correctness(plan: Plan, gold: pd.Series) -> np.ndarray | None:
    """`Results.teacher_correct`."""
    if plan.teacher_test is None or not plan.teacher_test.is_file():
        return None
    labels = pd.read_parquet(plan.teacher_test).drop_duplicates("example_id").set_index("example_id")["predicted"]
    correct = (labels.reindex(gold.index) == gold).fillna(False).to_numpy(dtype=float)
    return np.where(gold.index.isin(labels.index), correct, np.nan)


def teacher_tokens(plan: Plan, examples: pd.DataFrame) -> dict[tuple[str, float], int | None]:
    """(method, fraction) → input and output tokens of the annotations that such a student learns from.

    They were spent once for all sizes and seeds, and for all methods that read the same annotations. None where they are not
    known: the annotations were imported. Methods without annotations are left out.
    """
    if plan.annotations is None:
        return {}
    annotated = {t.method for t in plan.trials if METHODS[t.method].needs_annotations}
    if plan.config.teacher.imported:
        return {(t.method, t.fraction): None for t in plan.trials if t.method in annotated}
    table = pd.read_parquet(plan.annotations)
    table = table.assign(tokens=table["prompt_tokens"] + table["output_tokens"])
    train = examples[examples["split"] == "train"]
    tokens: dict[tuple[str, float], int | None] = {}
    for fraction in {t.fraction for t in plan.trials}:
        selected = table[table["example_id"].isin(select_fraction(train, fraction)["id"])]
        sums = selected.groupby("gold_conditioned")["tokens"].sum()
        for name in annotated:
            method = METHODS[name]
            kinds = {False: method.labels == "teacher" or method.rationale == "own", True: method.rationale == "given_gold"}
            tokens[name, fraction] = sum(int(sums.get(kind, 0)) for kind, is_read in kinds.items() if is_read)
    return tokens


def log_runs(plan: Plan, trials: list[dict[str, Any]]) -> list[str]:
    """Fills in the trials' MLflow runs; a sentence where MLflow is not available, which does not stop a report."""
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
    return [f"MLflow is not available, and the trials' runs are missing here: {problem}"] if problem else []


def group_trials(results: Results) -> list[Group]:
    """Mean accuracy with its interval, and mean costs, for each size, method, setting and fraction, over its seeds."""
    members: dict[tuple[str, str, str, float], list[int]] = defaultdict(list)
    for i, trial in enumerate(results.trials):
        setting = ", ".join(f"{key} {value}" for key, value in trial["settings"].items())
        members[trial["size"], trial["method"], setting, trial["fraction"]].append(i)
    accuracies = resampled_accuracies(results.correct, groups=results.groups)
    groups = []
    for (size, method, setting, fraction), indices in members.items():
        trials = pd.DataFrame([results.trials[i] for i in indices])
        if len(indices) == 1:
            accuracy, low, high = accuracy_interval(results.correct[indices[0]], groups=results.groups)
        else:
            accuracy = float(results.correct[indices].mean())
            low, high = percentiles(over_seeds(accuracies[:, indices]))
        first = results.trials[indices[0]]
        groups.append(
            {
                "size": size, "method": method, "setting": setting, "fraction": fraction, "seeds": len(indices),
                "accuracy": accuracy, "ci_low": low, "ci_high": high,
                "validation_accuracy": float(trials["validation_accuracy"].mean()), **{key: mean_of(trials[key]) for key in MEASURED},
                **{key: first[key] for key in ("settings", "train_examples", "parameters", "model", "teacher_tokens")},
                "train_seconds": round(float(trials["train_seconds"].mean()), 1), "trials": indices,
            }
        )  # fmt: skip
    return groups


def mean_of(values: pd.Series) -> float | None:
    """The mean of those that are known; None if none is."""
    mean = values.astype(float).mean()
    return None if np.isnan(mean) else float(mean)


def need_no_teacher(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials, groups or the like whose students need no teacher at inference; all if there are none."""
    return [e for e in entries if not METHODS[e["method"]].rationale_as_input] or entries


def baselines(plan: Plan, fractions: list[float], tested: pd.DataFrame | None = None) -> dict[str, Any]:
    """`majority`, and `tfidf`: the linear model at each fraction, as `report.json` has them.

    Args:
        tested: other examples to test on, with gold labels.
    """
    examples, task = pd.read_parquet(plan.examples), plan.config.task
    if tested is None:
        return {"majority": majority(examples, task), "tfidf": kept_baselines(plan, fractions, examples)}
    examples = pd.concat([examples[examples["split"] != "test"], tested.assign(split="test")], ignore_index=True)
    linear = [baseline for f in fractions if (baseline := tfidf_baseline(examples, task, f))]
    return {"majority": majority(examples, task), "tfidf": linear}


def kept_baselines(plan: Plan, fractions: list[float], examples: pd.DataFrame) -> list[dict[str, Any]]:
    """`tfidf_baseline` at each fraction, computed once for the study's examples, and kept in its folder."""
    path = plan.examples.with_name(plan.examples.name.replace("examples-", "tfidf-")).with_suffix(".json")
    known = read_json(path) if path.is_file() else {}
    if missing := [f for f in fractions if str(f) not in known]:
        known |= {str(f): tfidf_baseline(examples, plan.config.task, f) for f in missing}
        write_json(path, known)
    return [known[str(f)] for f in fractions if known[str(f)]]
