"""Which comparisons hold: method against method, size against size, student against teacher; and the papers' claims."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Any

import numpy as np

from cotd.evaluation.comparisons import Comparison, compare
from cotd.evaluation.statistics import group_codes, mcnemar
from cotd.training.methods import METHODS, Method
from cotd.training.trial import MULTITASK_SETTINGS
from pipelines.report.formatting import variant_of
from pipelines.report.published import CLAIMS, Claim
from pipelines.report.results import Group, Results

Pairs = list[tuple[Group, Group]]


def compare_methods(results: Results, groups: list[Group]) -> list[dict[str, Any]]:
    """Every two methods at the same size, setting and fraction, and the papers' claims across fractions.

    Returns:
        Comparisons as `report.json` lists them: `a`, `b`, `size`, `model`, `fraction_a`, `fraction_b` (`fraction` where they
        are the same), `seeds_a`, `seeds_b`, the fields of `cotd.evaluation.comparisons.Comparison`, `verdict`, and `by_seed`:
        McNemar's p-value for each seed that both have, uncorrected (none where test examples are in groups). All comparisons are
        corrected together.
    """
    claimed = {(c.better, c.worse) for c in CLAIMS}
    pairs = [
        (b, a) if (b["method"], a["method"]) in claimed else (a, b)
        for a, b in itertools.combinations(groups, 2)
        if comparable(a, b)
    ]
    for claim in CLAIMS:
        if claim.less_data:
            pairs += pairs_across_fractions(claim, groups)
    return compare_groups(results, pairs)


def compare_sizes(results: Results, groups: list[Group]) -> list[dict[str, Any]]:
    """Every two sizes at the same method, setting and fraction, the larger first, or the one that the study names first.

    Returns:
        What `compare_methods` returns, but `a` and `b` are the sizes, and `variant` is what both were trained by. They are
        corrected together, apart from the methods.
    """
    pairs = [
        (b, a) if b["parameters"] > a["parameters"] else (a, b)
        for a, b in itertools.combinations(groups, 2)
        if a["size"] != b["size"] and (variant_of(a), a["fraction"]) == (variant_of(b), b["fraction"])
    ]
    compared = compare_groups(results, pairs)
    names = [{"a": a["size"], "b": b["size"], "variant": variant_of(a)} for a, b in pairs]
    return [comparison | name for comparison, name in zip(compared, names, strict=True)]


def compare_with_teacher(results: Results, groups: list[Group]) -> list[dict[str, Any]]:
    """Every group against the teacher's labels of the same test examples; corrected together, apart from the methods."""
    if results.teacher_correct is None or not groups:
        return []
    annotated = ~np.isnan(results.teacher_correct)
    if not annotated.any():
        return []
    correct = np.vstack([results.correct[:, annotated], results.teacher_correct[None, annotated].astype(bool)])
    compared = compare(correct, [(g["trials"], [len(correct) - 1]) for g in groups], groups_among(results, annotated))
    teacher = {"method": "teacher", "setting": "", "seeds": 1}
    return [entry(g, teacher | {"fraction": g["fraction"]}, c) for g, c in zip(groups, compared, strict=True)]


def groups_among(results: Results, chosen: np.ndarray) -> np.ndarray | None:
    """The numbers of the groups of some test examples, see `Results.groups`."""
    return None if results.groups is None else group_codes(results.groups[chosen])


def compare_groups(results: Results, pairs: Pairs) -> list[dict[str, Any]]:
    """The entries of pairs of groups, corrected together."""
    compared = compare(results.correct, [(a["trials"], b["trials"]) for a, b in pairs], results.groups)
    return [entry(a, b, c) | {"by_seed": by_seed(results, a, b)} for (a, b), c in zip(pairs, compared, strict=True)]


def comparable(a: Group, b: Group) -> bool:
    """Whether two groups differ in one thing: the method, or one setting of the same method.

    Settings that one of two methods does not use make no difference: finetune has no λ.
    """
    if (a["size"], a["fraction"]) != (b["size"], b["fraction"]):
        return False
    keys = a["settings"].keys() | b["settings"].keys()
    different = {key for key in keys if a["settings"].get(key) != b["settings"].get(key)}
    if a["method"] == b["method"]:
        return len(different) == 1
    return different <= unused_settings(METHODS[a["method"]]) | unused_settings(METHODS[b["method"]])


def unused_settings(method: Method) -> set[str]:
    unused = set() if method.multitask else set(MULTITASK_SETTINGS)
    return unused if method.rationale else {*unused, "samples"}


def pairs_across_fractions(claim: Claim, groups: list[Group]) -> Pairs:
    """For each size, the better method with the smallest fraction against the worse one on all of the data."""
    pairs = []
    for worse in (g for g in groups if g["method"] == claim.worse and g["fraction"] == 1.0):
        rivals = [g for g in groups if g["method"] == claim.better and g["size"] == worse["size"]]
        smallest = min((g["fraction"] for g in rivals), default=1.0)
        matching = [g for g in rivals if g["fraction"] == smallest < 1.0 and comparable({**g, "fraction": 1.0}, worse)]
        pairs += [(g, worse) for g in matching]
    return pairs


def entry(a: Group, b: Group, comparison: Comparison) -> dict[str, Any]:
    """A comparison as `report.json` lists it."""
    same = a["fraction"] == b["fraction"]
    return {
        "a": variant_of(a), "b": variant_of(b), "method_a": a["method"], "method_b": b["method"], "size": a["size"],
        "model": a["model"], "fraction": a["fraction"] if same else None, "fraction_a": a["fraction"], "fraction_b": b["fraction"],
        "seeds_a": a["seeds"], "seeds_b": b["seeds"], **asdict(comparison), "verdict": comparison.verdict,
    }  # fmt: skip


def by_seed(results: Results, a: Group, b: Group) -> list[dict[str, Any]]:
    """McNemar's test for each seed that both groups have; none where examples are in groups: it takes them to be independent."""
    if results.groups is not None:
        return []
    rows_a, rows_b = ({results.trials[i]["seed"]: results.correct[i] for i in group["trials"]} for group in (a, b))
    return [{"seed": s, "p_value": mcnemar(row, rows_b[s])} for s, row in rows_a.items() if s in rows_b]


def judge_claims(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The papers' claims whose methods are in the study: `title`, `source`, and the positions of their `comparisons`."""
    keys = [(c["method_a"], c["method_b"], c["fraction"] is None) for c in comparisons]
    judged = []
    for claim in CLAIMS:
        if positions := [i for i, key in enumerate(keys) if key == (claim.better, claim.worse, claim.less_data)]:
            judged.append({"title": claim.title, "source": claim.source, "comparisons": positions})
    return judged


def least_to_reach(groups: list[Group], teacher_comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method and size, the least data with which the mean over seeds is at least the teacher's accuracy.

    Hsieh et al. 2023, "Outperforming LLMs using minimum model size and least training data".

    Returns:
        `method`, `setting`, `size`, `parameters`, `fraction` (None where no fraction reaches it), and of that fraction, or
        of the best: `at`, `examples`, `accuracy`, `difference`, `low`, `high`, `verdict` (whether it beats the teacher).
        By parameters, then by method.
    """
    curves: dict[tuple[str, str], Pairs] = {}
    for group, comparison in zip(groups, teacher_comparisons, strict=True):
        curves.setdefault((group["size"], variant_of(group)), []).append((group, comparison))
    least = []
    for curve in curves.values():
        reached = [cell for cell in curve if cell[1]["difference"] >= 0]
        group, c = min(reached, key=lambda x: x[0]["fraction"]) if reached else max(curve, key=lambda x: x[0]["accuracy"])
        least.append(
            {
                **{key: group[key] for key in ("method", "setting", "size", "parameters", "accuracy")},
                "fraction": group["fraction"] if reached else None, "at": group["fraction"], "examples": group["train_examples"],
                **{key: c[key] for key in ("difference", "low", "high", "verdict")},
            }
        )  # fmt: skip
    return sorted(least, key=lambda r: (r["parameters"], list(METHODS).index(r["method"]), r["setting"]))
