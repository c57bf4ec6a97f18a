"""A study's tables and figures: `report.md`, `accuracy.png` and `report.json` in the study's folder."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cotd.baselines import majority, tfidf_regression
from cotd.config import StudyConfig
from cotd.errors import CotdError
from cotd.methods import METHODS
from cotd.statistics import mcnemar, seeds_interval, share
from cotd.storage import on_storage
from cotd.tracking import StudyTracker
from cotd.trials import write_json
from pipelines.annotate import read_annotations
from pipelines.study import Plan, plan_study

# Colours that stay apart for colour-blind readers (Okabe and Ito 2008).
COLOURS = {
    "finetune": "#000000", "distill": "#E69F00", "cot_labelled": "#0072B2", "cot_unlabelled": "#009E73",
    "cot_joint": "#56B4E9", "cot_joint_unlabelled": "#F0E442", "rationale_input": "#CC79A7",
    "rationale_input_unlabelled": "#882255",
}  # fmt: skip


@on_storage
def report(config: StudyConfig) -> dict[str, Any]:
    """Writes the report of a study, finished or not, and returns what `report.json` holds.

    Raises:
        CotdError: no trial is done yet.
    """
    plan = plan_study(config)
    tracker = StudyTracker(config)
    done = [t for t in plan.trials if plan.folder(t).done]
    if not done:
        raise CotdError(f"study {config.name} has no finished trial to report. Run `cotd sweep CONFIG` first.")
    trials = []
    for trial in sorted(done, key=lambda t: (t.size, list(METHODS).index(t.method), t.fraction, t.seed)):
        result = plan.folder(trial).result()
        test = result["test"]
        trials.append(
            {
                "method": trial.method, "fraction": trial.fraction, "size": trial.size, "seed": trial.seed,
                "accuracy": test["accuracy"], "ci_low": test["ci_low"], "ci_high": test["ci_high"], "n_test": test["n"],
                "mlflow_run_id": tracker.sync_trial(trial, plan.folder(trial)), "validation_accuracy": result["validation"]["accuracy"],
                "macro_f1": test["macro_f1"], "train_reviews": result["train_reviews"],
                "train_seconds": round(result["train_seconds"], 1), "trial_id": trial.id,
            }
        )  # fmt: skip
    found = read_annotations(config) if plan.annotations else None
    teacher = found[1]["teacher"] if found else None
    content: dict[str, Any] = {
        "study": config.name,
        "source": config.data.source,
        "trials": trials,
        "missing_trials": [t.title for t in plan.pending()],
        "groups": group_trials(plan, trials),
        "comparisons": comparisons(plan, trials),
        "teacher": teacher,
        "majority": majority(pd.read_parquet(plan.folder_of(trials[0]["trial_id"]).predictions)["gold"]),
        "tfidf": linear_baselines(plan, sorted({t["fraction"] for t in trials})),
        "champion": read_json(config.directory / "champion.json"),
        "serving": read_json(config.directory / "serving.json"),
    }
    draw_accuracy(content, config.directory / "accuracy.png")
    (config.directory / "report.md").write_text(markdown(content), encoding="utf-8")
    write_json(config.directory / "report.json", content)
    return content


def read_json(path: Path) -> Any | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def correctness(plan: Plan, trial_id: str) -> pd.Series:
    """Whether each test review was predicted right, by review id."""
    table = pd.read_parquet(plan.folder_of(trial_id).predictions)
    return (table["gold"] == table["predicted"]).set_axis(table["review_id"]).sort_index()


def linear_baselines(plan: Plan, fractions: list[float]) -> list[dict[str, Any]]:
    """`tfidf_regression` at each fraction, computed once for a study's reviews and kept in the study's folder."""
    path = plan.reviews.with_name(plan.reviews.name.replace("reviews-", "tfidf-")).with_suffix(".json")
    known = {float(k): v for k, v in (read_json(path) or {}).items()}
    missing = [f for f in fractions if f not in known]
    if missing:
        reviews = pd.read_parquet(plan.reviews)
        known |= {f: tfidf_regression(reviews, f) for f in missing}
        write_json(path, known)
    return [known[f] for f in fractions if known[f]]


def group_trials(plan: Plan, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean accuracy and interval for each method, fraction and size, over its seeds."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for trial in trials:
        groups[trial["size"], trial["method"], trial["fraction"]].append(trial)
    rows = []
    for (size, method, fraction), members in groups.items():
        accuracy, low, high = seeds_interval(np.stack([correctness(plan, m["trial_id"]).to_numpy() for m in members]))
        rows.append(
            {
                "size": size, "method": method, "fraction": fraction, "seeds": len(members), "accuracy": accuracy,
                "ci_low": low, "ci_high": high, "train_reviews": members[0]["train_reviews"],
                "train_seconds": round(float(np.mean([m["train_seconds"] for m in members])), 1),
            }
        )  # fmt: skip
    return rows


def comparisons(plan: Plan, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Paired McNemar tests of every two methods at the same fraction, size and seed."""
    cells: dict[tuple[str, float, int], dict[str, str]] = defaultdict(dict)
    for t in trials:
        cells[t["size"], t["fraction"], t["seed"]][t["method"]] = t["trial_id"]
    rows = []
    for (size, fraction, seed), methods in cells.items():
        for a, b in itertools.combinations(methods, 2):
            right_a, right_b = correctness(plan, methods[a]), correctness(plan, methods[b])
            p = mcnemar(right_a.to_numpy(), right_b.reindex(right_a.index).to_numpy())
            difference = float(right_a.mean() - right_b.mean())
            rows.append(
                {"a": a, "b": b, "size": size, "fraction": fraction, "seed": seed, "difference": difference, "p_value": p}
            )
    return rows


def markdown(content: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# {content['study']}", "", f"Data: `{content['source']}`. Accuracy on gold test labels, 95 % intervals.", ""]
    fractions = sorted({g["fraction"] for g in content["groups"]})
    for size in dict.fromkeys(g["size"] for g in content["groups"]):
        lines += table_lines(content, size, fractions)
    lines += ["![Accuracy against the share of training data](accuracy.png)", ""]
    lines += [f"- {sentence}" for sentence in findings(content)]
    if content["missing_trials"]:
        lines += ["", f"Not done yet: {'; '.join(content['missing_trials'])}."]
    return "\n".join(lines) + "\n"


def table_lines(content: dict[str, Any], size: str, fractions: list[float]) -> list[str]:
    cells = {(g["method"], g["fraction"]): g for g in content["groups"] if g["size"] == size}
    lines = [
        f"| {size} | " + " | ".join(f"{share(f)} of the data" for f in fractions) + " |",
        "|---" * (len(fractions) + 1) + "|",
    ]
    for method in [m for m in METHODS if any(key[0] == m for key in cells)]:
        row = [percent(cells[method, f]) if (method, f) in cells else "" for f in fractions]
        lines.append(f"| `{method}` | " + " | ".join(row) + " |")
    if content["tfidf"]:
        linear = {b["fraction"]: percent(b) for b in content["tfidf"]}
        lines.append("| TF-IDF + logistic regression | " + " | ".join(linear.get(f, "") for f in fractions) + " |")
    always = content["majority"]
    lines.append(f"| always *{always['label']}* |" + " |" * (len(fractions) - 1) + f" {percent(always)} |")
    if teacher := content["teacher"]:
        lines.append(f"| teacher ({teacher['model']}) |" + " |" * (len(fractions) - 1) + f" {percent(teacher)} |")
    return [*lines, ""]


def percent(entry: dict[str, Any]) -> str:
    """ "63.1 % [60.2, 65.9]" for an entry with accuracy, ci_low and ci_high."""
    return f"{entry['accuracy'] * 100:.1f} % [{entry['ci_low'] * 100:.1f}, {entry['ci_high'] * 100:.1f}]"


def findings(content: dict[str, Any]) -> list[str]:
    """Plain sentences: what differs more than chance would, and how students compare with their teacher."""
    sentences = []
    significant = [c for c in content["comparisons"] if c["p_value"] < 0.05]
    for c in significant:
        better, worse = (c["a"], c["b"]) if c["difference"] > 0 else (c["b"], c["a"])
        where = f"{share(c['fraction'])}, {c['size']}, seed {c['seed']}"
        sentences.append(
            f"{better} beats {worse} by {abs(c['difference']) * 100:.1f} points ({where}; McNemar p = {c['p_value']:.2g})."
        )
    if not significant and content["comparisons"]:
        sentences.append("No two methods differ by more than chance would explain (McNemar, p < 0.05, uncorrected).")
    elif significant:
        sentences.append(f"{len(content['comparisons'])} pairs were tested, without correction for their number.")
    readers = dict.fromkeys(g["method"] for g in content["groups"] if METHODS[g["method"]].reads_rationales)
    if readers:
        sentences.append(
            f"Students of {' and '.join(readers)} read the teacher's rationale of each review: they are no use without it."
        )
    alone = [g for g in content["groups"] if g["method"] not in readers]
    best = max(alone or content["groups"], key=lambda g: g["accuracy"])
    always = content["majority"]
    if best["ci_low"] <= always["accuracy"]:
        sentences.append(
            f"No student is clearly better than always answering {always['label']} ({always['accuracy'] * 100:.1f} %): "
            "more reviews, more steps or a pretrained student are needed."
        )
    linear = next((b for b in content["tfidf"] if b["fraction"] == best["fraction"]), None)
    if linear and linear["accuracy"] >= best["ci_low"]:
        sentences.append(
            f"No student is clearly better than TF-IDF with logistic regression on the same gold labels, {percent(linear)}."
        )
    sentences.append(f"Best student: {best['method']} at {share(best['fraction'])} ({best['size']}), {percent(best)}.")
    if teacher := content["teacher"]:
        verdict = "above" if best["accuracy"] > teacher["accuracy"] else "below"
        sentences.append(f"That is {verdict} its teacher, {percent(teacher)} on the same {teacher['n']} reviews.")
    return sentences


def draw_accuracy(content: dict[str, Any], path: Path) -> None:
    """Accuracy against the share of training data, a line a method, one panel a size, the teacher as a dashed line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = list(dict.fromkeys(g["size"] for g in content["groups"]))
    figure, panels = plt.subplots(1, len(sizes), figsize=(1 + 5 * len(sizes), 4.2), sharey=True, squeeze=False)
    for panel, size in zip(panels[0], sizes, strict=True):
        for number, method in enumerate(
            m for m in METHODS if any(g["method"] == m and g["size"] == size for g in content["groups"])
        ):
            points = sorted(
                (g for g in content["groups"] if (g["method"], g["size"]) == (method, size)), key=lambda g: g["fraction"]
            )
            x = np.array([p["fraction"] * 100 for p in points]) * (1 + 0.02 * (number - 1.5))  # apart, so that bars show
            y = np.array([p["accuracy"] * 100 for p in points])
            bars = np.abs(np.array([[p["ci_low"], p["ci_high"]] for p in points]).T * 100 - y)
            panel.errorbar(x, y, yerr=bars, marker="o", capsize=3, label=method, color=COLOURS.get(method))
        if teacher := content["teacher"]:
            panel.axhline(teacher["accuracy"] * 100, linestyle="--", color="#D55E00", label="teacher")
            panel.axhspan(teacher["ci_low"] * 100, teacher["ci_high"] * 100, color="#D55E00", alpha=0.1)
        if content["tfidf"]:
            linear = [(b["fraction"] * 100, b["accuracy"] * 100) for b in content["tfidf"]]
            panel.plot(*zip(*linear, strict=True), linestyle="-.", marker=".", color="#888888", label="TF-IDF + LR")
        panel.axhline(content["majority"]["accuracy"] * 100, linestyle=":", color="#888888", label="commonest label")
        panel.set_xscale("log")
        ticks = sorted({g["fraction"] * 100 for g in content["groups"]})
        panel.set_xticks(ticks, [f"{t:g} %" for t in ticks])
        panel.minorticks_off()
        panel.set(xlabel="share of the training data", title=f"{size}")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("test accuracy, % (95 % interval)")
    panels[0][-1].legend(loc="best", fontsize="small")
    figure.suptitle(f"{content['study']}: accuracy against data")
    figure.tight_layout()
    scratch = path.with_suffix(".part.png")
    figure.savefig(scratch, dpi=130)
    plt.close(figure)
    scratch.replace(path)
