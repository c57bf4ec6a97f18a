"""What a report says in plain sentences: which claims hold and which do not, and how students compare."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from cotd.evaluation.comparisons import ALPHA, POWER
from cotd.training.methods import METHODS
from cotd.utils.text import format_percent
from pipelines.report.formatting import (
    accuracy,
    fractions_of,
    p_equals,
    percentage,
    points,
    setting_of,
    signed,
    size_title,
    span,
    variant_of,
)
from pipelines.report.labels import best_group
from pipelines.report.results import Content, Group, need_no_teacher

Comparisons = list[dict[str, Any]]
# A claim tested in more places than this gives its intervals in the table alone.
MAX_INTERVALS = 4
VERDICTS = {"holds": "holds for", "opposite": "is contradicted for", "not shown": "is not shown for"}


def in_short(content: Content) -> list[str]:
    """What won, by how much, and how sure that is, for a reader who knows none of the methods."""
    best = best_group(content["groups"])
    if best is None:
        return []
    count = f"{content['test_examples']:,} test examples"
    seeds = f", the mean of {best['seeds']} trainings" if best["seeds"] > 1 else ""
    sentences = [
        f"**{percentage(best['accuracy'])}** of {count} are right{seeds} (95 % interval {best['ci_low'] * 100:.1f} to "
        f"{best['ci_high'] * 100:.1f}): the best student on validation, `{variant_of(best)}` ({METHODS[best['method']].title}), "
        f"{best['size']}, with {format_percent(best['fraction'])} of the training data."
    ]
    sentences += [f"Compared with {name}: {by_how_much(c)}" for name, c in rivals_of(best, content)]
    always, linear = content["majority"], [b for b in content["tfidf"] if b["fraction"] == best["fraction"]]
    simple = [f"always answering *{always['label']}* {percentage(always['accuracy'])}"]
    simple += [f"{b['name']} on the same examples {percentage(b['accuracy'])}" for b in linear]
    sentences.append(f"What needs no such training: {', '.join(simple)}.")
    return sentences


def rivals_of(best: Group, content: Content) -> list[tuple[str, dict[str, Any]]]:
    """What the best student is compared with: the best of the other kind of labels at its size and data, and its teacher.

    Returns:
        (what it is, the comparison, the best student's side first).
    """
    rivals = []
    mine = (variant_of(best), best["size"], best["fraction"])
    kinds = {variant_of(g): METHODS[g["method"]].distilled for g in content["groups"]}
    others = []
    for c in content["comparisons"]:
        if c["fraction"] is not None and mine in ((c["a"], c["size"], c["fraction"]), (c["b"], c["size"], c["fraction"])):
            turned = c if c["a"] == mine[0] else swapped(c)
            if kinds[turned["b"]] != METHODS[best["method"]].distilled:
                others.append(turned)
    if others:
        nearest = min(others, key=lambda c: c["difference"])
        kind = "the best student without a teacher" if METHODS[best["method"]].distilled else "the best student with a teacher"
        rivals.append((f"{kind}, `{nearest['b']}`, at the same size and data", nearest))
    of_teacher = [c for c in content["teacher_comparisons"] if mine == (c["a"], c["size"], c["fraction_a"])]
    if of_teacher and content["teacher"]:
        rivals.append((f"the teacher, {content['teacher']['model']}", of_teacher[0]))
    return rivals


def by_how_much(c: dict[str, Any]) -> str:
    """ "4.8 points more (95 % interval 2.1 to 7.5), which is beyond chance." """
    more = c["difference"] >= 0
    turned = c if more else swapped(c)
    size, low, high = (f"{turned[key] * 100 + 0.0:.1f}" for key in ("difference", "low", "high"))
    chance = "may be chance" if c["verdict"] == "not shown" else "is beyond chance"
    interval = f"95 % interval {low.replace('-', '−')} to {high}"
    if size == "0.0":
        return f"as many are right ({interval} points)."
    return f"{size} points {'more' if more else 'fewer'} ({interval}), which {chance}."


def findings(content: Content) -> list[str]:
    """The sentences, the papers' claims first."""
    comparisons, sizes, rows = content["comparisons"], content["size_comparisons"], content["test_examples"]
    sentences = [
        f"**{claim['title']}** {verdicts([comparisons[i] for i in claim['comparisons']])}. [{claim['source']}]"
        for claim in content["claims"]
    ]
    sentences += other_differences(content)
    if comparisons and all(c["verdict"] == "not shown" for c in comparisons):
        sentences.append("No two methods differ significantly.")
    sentences += power_sentences(comparisons, "methods", rows)
    pairs: dict[tuple[str, str], Comparisons] = defaultdict(list)
    for c in sizes:
        pairs[c["a"], c["b"]].append(c)
    sentences += [f"**{a} beats {b}**, with the same method, {verdicts(cells)}." for (a, b), cells in pairs.items()]
    sentences += power_sentences(sizes, "sizes", rows)
    sentences += student_sentences(content) + teacher_sentences(content) + serving_sentences(content)
    return list(dict.fromkeys(sentences))  # that there is one seed is said of methods and of sizes


def verdicts(cells: Comparisons) -> str:
    """ "holds for …. It is not shown for …"."""
    by_verdict = {words: [c for c in cells if c["verdict"] == verdict] for verdict, words in VERDICTS.items()}
    return ". It ".join(f"{words} {places(some)}" for words, some in by_verdict.items() if some)


def places(cells: Comparisons) -> str:
    """ "tiny at 10 %, 25 %: +3.2 to +4.3 points" for comparisons; where they are few, each with its interval and p-value."""
    by_variant: dict[str, Comparisons] = defaultdict(list)
    for c in cells:
        by_variant[c.get("variant") or f"{c['size']} {setting_of(c)}".strip()].append(c)
    texts = []
    for name, some in by_variant.items():
        at = [fractions_of(c, " against ") for c in some]
        if len(cells) <= MAX_INTERVALS:
            texts += [f"{name} at {f}: {points(c)} points, {p_equals(c['p_holm'])}" for f, c in zip(at, some, strict=True)]
        else:
            differences = [c["difference"] for c in some]
            texts.append(f"{name} at {', '.join(at)}: {span(signed(min(differences)), signed(max(differences)))} points")
    return "; ".join(texts)


def other_differences(content: Content) -> list[str]:
    """A sentence for each two methods that differ significantly somewhere, and that no claim is about."""
    claimed = {i for claim in content["claims"] for i in claim["comparisons"]}
    pairs: dict[tuple[str, str], Comparisons] = defaultdict(list)
    for i, c in enumerate(content["comparisons"]):
        if i not in claimed and c["verdict"] != "not shown":
            better = c if c["verdict"] == "holds" else swapped(c)
            pairs[better["a"], better["b"]].append(better)
    return [f"{better} beats {worse} for {places(cells)}." for (better, worse), cells in pairs.items()]


def swapped(c: dict[str, Any]) -> dict[str, Any]:
    """The same comparison, B minus A."""
    sides = {f"{key}_{side}": c[f"{key}_{other}"] for key in ("method", "fraction", "seeds") for side, other in ("ab", "ba")}
    return {**c, **sides, "a": c["b"], "b": c["a"], "difference": -c["difference"], "low": -c["high"], "high": -c["low"]}


def power_sentences(comparisons: Comparisons, kind: str, rows: int) -> list[str]:
    """How the tests were corrected, and how small a difference they could have found.

    Args:
        kind: what is compared, "methods" or "sizes". rows: test examples.
    """
    if not comparisons:
        return []
    counted = f"1 comparison of {kind} was" if len(comparisons) == 1 else f"{len(comparisons)} comparisons of {kind} were"
    tested = f"{counted} tested, with Holm's correction at {format_percent(ALPHA)}."
    # Two that agree everywhere do not tell how often such students disagree.
    differing = [c for c in comparisons if c["detectable"] > 0]
    if differing:
        ranges = ([c[key] * 100 for c in differing] for key in ("detectable", "detectable_holm"))
        one, strictest = (span(f"{min(values):.1f}", f"{max(values):.1f}") for values in ranges)
        power = (
            f"With {rows:,} test examples, and {kind} that disagree as often as these, one test alone finds a difference of {one} "
            f"points with {format_percent(POWER)} power, and the strictest of the corrected tests one of {strictest}: smaller "
            "differences may exist."
        )
    else:
        power = f"The {kind} agree on all {rows:,} test examples: more are needed to distinguish them."
    sentences = [f"{tested} {power}"]
    if all(c["seeds_a"] == c["seeds_b"] == 1 for c in comparisons):
        sentences.append(
            "With one seed each, the tests are about these students, not about what another training run would give."
        )
    return sentences


def student_sentences(content: Content) -> list[str]:
    """The best student, and whether it is better than what needs no training."""
    if not content["groups"]:
        return []
    sentences = []
    if readers := dict.fromkeys(g["method"] for g in content["groups"] if METHODS[g["method"]].rationale_as_input):
        names = " and ".join(readers)
        sentences.append(f"Students of {names} read the teacher's rationale of each example: they cannot be used without it.")
    best = max(need_no_teacher(content["groups"]), key=lambda g: g["accuracy"])
    always = content["majority"]
    advice = "more examples, more steps or a pretrained student are needed"
    rivals = [(always, f"always predicting {always['label']} ({percentage(always['accuracy'])}): {advice}")]
    for base in (b for b in content["bases"] if b["size"] == best["size"]):
        advice = "what it knows comes from its pretraining"
        rivals.append((base, f"{base['model']} before this training, {accuracy(base)}: {advice}"))
    for linear in (b for b in content["tfidf"] if b["fraction"] == best["fraction"]):
        rivals.append((linear, f"{linear['name']} on the same examples, {accuracy(linear)}"))
    sentences += [f"No student is clearly better than {name}." for rival, name in rivals if rival["accuracy"] >= best["ci_low"]]
    place = f"{variant_of(best)} at {format_percent(best['fraction'])} ({best['size']})"
    return [*sentences, f"Highest test accuracy: {place}, {accuracy(best)}."]


def teacher_sentences(content: Content) -> list[str]:
    """The smallest student and the least data that reach the teacher, or how far the best is below it."""
    teacher = content["teacher"]
    if not teacher:
        return []
    if not content["least_to_reach_teacher"]:
        return [f"Teacher: {accuracy(teacher)} of {teacher['n']:,} test examples."]
    least = need_no_teacher(content["least_to_reach_teacher"])
    reached = [r for r in least if r["fraction"] is not None]
    name = f"its teacher, {accuracy(teacher)} on the same {teacher['n']:,} examples"
    if not reached:
        nearest = max(least, key=lambda r: r["difference"])
        significant = "not significant" if nearest["verdict"] == "not shown" else "significant"
        return [
            f"No student reaches {name}: the nearest, {variant_of(nearest)} at {format_percent(nearest['at'])} "
            f"({nearest['size']}), differs by {points(nearest)} points, {significant}."
        ]
    smallest = min(reached, key=lambda r: (r["parameters"], r["fraction"]))
    fewest = min(reached, key=lambda r: (r["fraction"], r["parameters"]))
    if fewest is smallest:
        return [f"The smallest student with the least data that reaches {name}: {reaching(smallest)}."]
    least_data = f"The least data that reach it: {reaching(fewest)}."
    return [f"The smallest student that reaches {name}: {reaching(smallest)}.", least_data]


def reaching(r: dict[str, Any]) -> str:
    return (
        f"{variant_of(r)}, {size_title(r)}, at {format_percent(r['fraction'])} ({r['examples']:,} examples), "
        f"{percentage(r['accuracy'])}, {points(r)} points, {'' if r['verdict'] == 'holds' else 'not '}significantly above it"
    )


def serving_sentences(content: Content) -> list[str]:
    """The champion and its latency, where there are any."""
    sentences = []
    if champion := content["champion"]:
        place = f"{champion['method']} at {format_percent(champion['fraction'])}"
        sentences.append(f"Champion, by validation: {place}, {champion['model_uri']}.")
    if latency := content["serving"]:
        times = f"median {latency['p50_ms']} ms, 95th percentile {latency['p95_ms']} ms ({latency['requests']} requests)"
        sentences.append(f"Serving one client: {times}.")
    return sentences
