"""Which of a study's comparisons hold: method against method, size against size, student against teacher; the papers' claims."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Any

import numpy as np

from cotd.evaluation.comparisons import Comparison, compare
from cotd.evaluation.statistics import mcnemar
from cotd.training.methods import METHODS, Method
from cotd.training.trial import RATIONALE_SETTINGS
from pipelines.report.published import CLAIMS, Claim
from pipelines.report.results import Results

TEACHER = "teacher"
Group = dict[str, Any]


def arm(entry: dict[str, Any]) -> str:
    """A method and, in studies that vary something else, its setting: "cot_labelled (rationale_weight 1)"."""
    return f"{entry['method']} ({entry['setting']})" if entry["setting"] else str(entry["method"])


def setting_of(comparison: dict[str, Any]) -> str:
    """The setting of a comparison's A, "(samples 4)", or an empty string."""
    return str(comparison["a"]).removeprefix(comparison["method_a"]).strip()


def compare_methods(results: Results, groups: list[Group]) -> list[dict[str, Any]]:
    """Every two methods at the same size, setting and fraction, and the papers' claims across fractions.

    Returns:
        Comparisons as `report.json` lists them: `a`, `b`, `size`, `model`, `fraction_a`, `fraction_b` (`fraction` where they
        are the same), `seeds_a`, `seeds_b`, the fields of `cotd.evaluation.comparisons.Comparison`, `verdict`, and `by_seed`:
        McNemar's p-value for each seed that both have. All of them are corrected together.
    """
    pairs = [(a, b) for a, b in itertools.combinations(groups, 2) if comparable(a, b)]
    pairs = [(b, a) if is_claimed(b, a) else (a, b) for a, b in pairs]
    for claim in CLAIMS:
        if claim.less_data:
            pairs += across_fractions(claim, groups)
    found = compare(results.correct, [(a["trials"], b["trials"]) for a, b in pairs])
    return [entry(a, b, c) | {"by_seed": by_seed(results, a, b)} for (a, b), c in zip(pairs, found, strict=True)]


def comparable(a: Group, b: Group) -> bool:
    """Whether two groups differ in one thing: the method, or one setting of the same method (which one may leave as it is).

    What one of two methods does not know, it does not differ in: finetune has no λ.
    """
    if (a["size"], a["fraction"]) != (b["size"], b["fraction"]):
        return False
    mine, theirs = a["settings"], b["settings"]
    different = {key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)}
    if a["method"] == b["method"]:
        return len(different) == 1
    return different <= unknown_settings(METHODS[a["method"]]) | unknown_settings(METHODS[b["method"]])


def unknown_settings(method: Method) -> set[str]:
    """The settings that say nothing to a method."""
    weighed = set() if method.multitask else {*RATIONALE_SETTINGS, "shared_encoder"}
    return weighed if method.rationale else {*weighed, "samples"}


def is_claimed(a: Group, b: Group) -> bool:
    return any((c.better, c.worse) == (a["method"], b["method"]) for c in CLAIMS)


def across_fractions(claim: Claim, groups: list[Group]) -> list[tuple[Group, Group]]:
    """For each size, the better method with the smallest fraction against the worse one on all of the data."""
    pairs = []
    for worse in groups:
        if worse["method"] != claim.worse or worse["fraction"] != 1.0:
            continue
        rivals = [g for g in groups if g["method"] == claim.better and g["size"] == worse["size"]]
        smallest = min((g["fraction"] for g in rivals), default=1.0)
        matching = [g for g in rivals if g["fraction"] == smallest < 1.0 and comparable({**g, "fraction": 1.0}, worse)]
        pairs += [(g, worse) for g in matching]
    return pairs


def entry(a: Group, b: Group, comparison: Comparison) -> dict[str, Any]:
    same = a["fraction"] == b["fraction"]
    return {
        "a": arm(a), "b": arm(b), "method_a": a["method"], "method_b": b["method"], "size": a["size"],
        "model": a["model"], "fraction": a["fraction"] if same else None, "fraction_a": a["fraction"], "fraction_b": b["fraction"],
        "seeds_a": a["seeds"], "seeds_b": b["seeds"], **asdict(comparison), "verdict": comparison.verdict,
    }  # fmt: skip


def by_seed(results: Results, a: Group, b: Group) -> list[dict[str, Any]]:
    """McNemar's test for each seed that both groups have, uncorrected."""
    ours = {results.trials[i]["seed"]: i for i in a["trials"]}
    theirs = {results.trials[i]["seed"]: i for i in b["trials"]}
    return [
        {"seed": seed, "p_value": mcnemar(results.correct[ours[seed]], results.correct[theirs[seed]])}
        for seed in ours
        if seed in theirs
    ]


def compare_sizes(results: Results, groups: list[Group]) -> list[dict[str, Any]]:
    """Every two sizes at the same method, setting and fraction, the one with more parameters first, of two with as many the one
    that the study names first; corrected together, apart from the methods'.

    Returns:
        What `compare_methods` returns, but `a` and `b` are the sizes, and `arm` is what both were trained by.
    """
    pairs = [
        (b, a) if b["parameters"] > a["parameters"] else (a, b)
        for a, b in itertools.combinations(groups, 2)
        if a["size"] != b["size"] and (arm(a), a["fraction"]) == (arm(b), b["fraction"])
    ]
    found = compare(results.correct, [(a["trials"], b["trials"]) for a, b in pairs])
    return [
        entry(a, b, c) | {"a": a["size"], "b": b["size"], "arm": arm(a), "by_seed": by_seed(results, a, b)}
        for (a, b), c in zip(pairs, found, strict=True)
    ]


def compare_with_teacher(results: Results, groups: list[Group]) -> list[dict[str, Any]]:
    """Every group against the teacher's own labels of the same test reviews; corrected together, apart from the methods'."""
    if results.teacher_correct is None or not groups:
        return []
    asked = ~np.isnan(results.teacher_correct)
    if not asked.any():
        return []
    correct = np.vstack([results.correct[:, asked], results.teacher_correct[None, asked].astype(bool)])
    last = len(correct) - 1
    teacher: Group = {"method": TEACHER, "setting": "", "seeds": 1}
    found = compare(correct, [(g["trials"], [last]) for g in groups])
    return [entry(g, teacher | {"fraction": g["fraction"]}, c) for g, c in zip(groups, found, strict=True)]


def judge_claims(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The papers' claims whose methods are in the study: `title`, `source`, and the positions of their `comparisons`."""
    found = []
    for claim in CLAIMS:
        cells = [
            i
            for i, c in enumerate(comparisons)
            if (c["method_a"], c["method_b"]) == (claim.better, claim.worse) and (c["fraction"] is None) == claim.less_data
        ]
        if cells:
            found.append({"title": claim.title, "source": claim.source, "comparisons": cells})
    return found


def least_to_reach(groups: list[Group], against_teacher: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method and size, the least data with which the mean over seeds is at least the teacher's accuracy.

    Hsieh et al. 2023, "Outperforming LLMs using minimum model size and least training data".

    Returns:
        `method`, `setting`, `size`, `parameters`, `fraction` (None where no fraction reaches it), and of that fraction, or
        of the best: `at`, `accuracy`, `difference`, `low`, `high`, `verdict` (whether it beats the teacher beyond chance).
        By parameters, then by method.
    """
    arms: dict[tuple[str, str, str], list[tuple[Group, dict[str, Any]]]] = {}
    for group, comparison in zip(groups, against_teacher, strict=True):
        arms.setdefault((group["size"], group["method"], group["setting"]), []).append((group, comparison))
    found = []
    for (size, method, setting), cells in arms.items():
        reached = [cell for cell in cells if cell[1]["difference"] >= 0]
        group, c = min(reached, key=lambda cell: cell[0]["fraction"]) if reached else max(cells, key=lambda x: x[0]["accuracy"])
        found.append(
            {
                "method": method, "setting": setting, "size": size, "parameters": group["parameters"],
                "fraction": group["fraction"] if reached else None, "at": group["fraction"], "reviews": group["train_reviews"],
                "accuracy": group["accuracy"], **{k: c[k] for k in ("difference", "low", "high", "verdict")},
            }
        )  # fmt: skip
    return sorted(found, key=lambda r: (r["parameters"], list(METHODS).index(r["method"]), r["setting"]))
