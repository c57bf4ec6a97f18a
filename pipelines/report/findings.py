"""What a report says in plain sentences: each claim that holds and each that does not, and how students compare."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from cotd.evaluation.comparisons import ALPHA
from cotd.training.methods import METHODS
from cotd.utils.text import format_percent
from pipelines.report.claims import arm, setting_of

Content = dict[str, Any]
# A claim tested in more cells than this names its intervals in the table alone.
MOST_INTERVALS = 4


def percent(entry: dict[str, Any]) -> str:
    """ "63.1 % [60.2, 65.9]" for an entry with accuracy, ci_low and ci_high."""
    return f"{entry['accuracy'] * 100:.1f} % [{entry['ci_low'] * 100:.1f}, {entry['ci_high'] * 100:.1f}]"


def points(comparison: dict[str, Any]) -> str:
    """ "+4.8 [2.1, 7.5]" for a comparison, in percentage points."""
    return f"{signed(comparison['difference'])} [{signed(comparison['low'], '')}, {signed(comparison['high'], '')}]"


def signed(value: float, plus: str = "+") -> str:
    rounded = round(value * 100, 1) + 0.0  # no "-0.0"
    return f"{'−' if rounded < 0 else plus if rounded > 0 else ''}{abs(rounded):.1f}"


def p_value(p: float) -> str:
    """ "p = 0.013", "p < 0.0001"."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}" if p < 0.1 else f"p = {min(p, 1.0):.1f}"


def size_title(group: dict[str, Any]) -> str:
    """ "tiny (8.4 M)": a size and its parameters."""
    return f"{group['size']} ({short(group['parameters'])})"


def short(count: float) -> str:
    """ "8.4 M" for 8,391,936."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:,.0f}"


def findings(content: Content) -> list[str]:
    """The sentences, the papers' claims first."""
    sentences = [claim_sentence(claim, content["comparisons"]) for claim in content["claims"]]
    sentences += other_differences(content)
    if content["comparisons"] and not any(c["verdict"] != "not shown" for c in content["comparisons"]):
        sentences.append("No two methods differ by more than chance would explain.")
    sentences += power_sentences(content["comparisons"], "methods", content["test_reviews"])
    sentences += size_sentences(content)
    sentences += power_sentences(content["size_comparisons"], "sizes", content["test_reviews"])
    return sentences + student_sentences(content) + teacher_sentences(content) + serving_sentences(content)


def claim_sentence(claim: dict[str, Any], comparisons: list[dict[str, Any]]) -> str:
    """ "**A beats B** holds for …. It is not shown for …": where the claim holds, where its opposite does, where neither."""
    cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for i in claim["comparisons"]:
        cells[comparisons[i]["verdict"]].append(comparisons[i])
    return f"**{claim['title']}** {verdicts(cells)}. [{claim['source']}]"


def size_sentences(content: Content) -> list[str]:
    """For each two sizes what `claim_sentence` says of a claim."""
    pairs: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for c in content["size_comparisons"]:
        pairs[c["a"], c["b"]][c["verdict"]].append(c)
    return [f"**{a} beats {b}**, of one method, {verdicts(cells)}." for (a, b), cells in pairs.items()]


def verdicts(cells: dict[str, list[dict[str, Any]]]) -> str:
    """ "holds for …. It is not shown for …" of comparisons by verdict."""
    kinds = (("holds", "holds for"), ("opposite", "is contradicted for"), ("not shown", "is not shown for"))
    return ". It ".join(f"{words} {places(cells[kind])}" for kind, words in kinds if cells.get(kind))


def places(cells: list[dict[str, Any]]) -> str:
    """ "tiny at 10 %, 25 %: +3.2 to +4.3 points" for comparisons; where they are few, each with its interval and p-value."""
    by_arm: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for c in cells:
        by_arm[c.get("arm") or " ".join(filter(None, [c["size"], setting_of(c)]))].append(c)
    if len(cells) <= MOST_INTERVALS:
        told = [f"{name} at {at(c)}: {points(c)} points, {p_value(c['p_holm'])}" for name, of in by_arm.items() for c in of]
    else:
        told = [f"{name} at {', '.join(map(at, of))}: {signed_span(of)} points" for name, of in by_arm.items()]
    return "; ".join(told)


def at(c: dict[str, Any]) -> str:
    return (
        format_percent(c["fraction"])
        if c["fraction"] is not None
        else f"{format_percent(c['fraction_a'])} against {format_percent(c['fraction_b'])}"
    )


def signed_span(cells: list[dict[str, Any]]) -> str:
    low, high = (signed(f(c["difference"] for c in cells)) for f in (min, max))
    return low if low == high else f"{low} to {high}"


def other_differences(content: Content) -> list[str]:
    """A sentence for each two methods that differ somewhere beyond chance, and that no claim is about."""
    claimed = {i for claim in content["claims"] for i in claim["comparisons"]}
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for i, c in enumerate(content["comparisons"]):
        if i not in claimed and c["verdict"] == "holds":
            pairs[c["a"], c["b"]].append(c)
        elif i not in claimed and c["verdict"] == "opposite":
            pairs[c["b"], c["a"]].append(turned(c))
    return [f"{better} beats {worse} for {places(cells)}." for (better, worse), cells in pairs.items()]


def turned(c: dict[str, Any]) -> dict[str, Any]:
    """The same comparison, B less A."""
    swapped = {f"{key}_{side}": c[f"{key}_{other}"] for key in ("method", "fraction", "seeds") for side, other in ("ab", "ba")}
    return {**c, **swapped, "a": c["b"], "b": c["a"], "difference": -c["difference"], "low": -c["high"], "high": -c["low"]}


def power_sentences(found: list[dict[str, Any]], kind: str, rows: int) -> list[str]:
    """How the tests were corrected, and how small a difference they could have found.

    Args:
        kind: "methods" or "sizes", of which two are compared each time. rows: test reviews.
    """
    if not found:
        return []
    # Two that agree everywhere say nothing of how often such ones disagree.
    apart = [c for c in found if c["detectable"] > 0]
    one, strict = ([c[key] * 100 for c in apart] for key in ("detectable", "detectable_holm"))
    counted = f"1 comparison of {kind} was" if len(found) == 1 else f"{len(found)} comparisons of {kind} were"
    tested = f"{counted} tested and corrected together (Holm, {ALPHA * 100:g} %)."
    sentences = [
        f"{tested} With {rows:,} test reviews, and {kind} that disagree as often as these, a difference must be of {span(one)} "
        f"points to be found four times in five by one test, and of {span(strict)} by the strictest of all: smaller ones may be "
        "there, unseen."
        if apart
        else f"{tested} The {kind} agree on all {rows:,} test reviews: more are needed to tell them apart."
    ]
    if all(c["seeds_a"] == c["seeds_b"] == 1 for c in found):
        sentences.append("One seed each: the tests speak of these students, not of what another training would give.")
    return sentences


def span(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def student_sentences(content: Content) -> list[str]:
    """The best student, and whether it is better than what needs no student."""
    if not content["groups"]:
        return []
    sentences = []
    readers = dict.fromkeys(g["method"] for g in content["groups"] if METHODS[g["method"]].rationale_as_input)
    if readers:
        sentences.append(
            f"Students of {' and '.join(readers)} read the teacher's rationale of each review: they are no use without it."
        )
    best = best_student(content)
    always = content["majority"]
    if best["ci_low"] <= always["accuracy"]:
        sentences.append(
            f"No student is clearly better than always answering {always['label']} ({always['accuracy'] * 100:.1f} %): "
            "more reviews, more steps or a pretrained student are needed."
        )
    base = next((b for b in content["bases"] if b["size"] == best["size"]), None)
    if base and base["accuracy"] >= best["ci_low"]:
        sentences.append(
            f"No student is clearly better than {base['model']} as it is, before this training, {percent(base)}: what it knows "
            "comes from its pretraining."
        )
    linear = next((b for b in content["tfidf"] if b["fraction"] == best["fraction"]), None)
    if linear and linear["accuracy"] >= best["ci_low"]:
        sentences.append(
            f"No student is clearly better than TF-IDF with logistic regression on the same gold labels, {percent(linear)}."
        )
    sentences.append(
        f"Highest test accuracy: {arm(best)} at {format_percent(best['fraction'])} ({best['size']}), {percent(best)}."
    )
    return sentences


def best_student(content: Content) -> dict[str, Any]:
    """The group of the highest accuracy, among those that need no teacher at inference where there are any."""
    alone = [g for g in content["groups"] if not METHODS[g["method"]].rationale_as_input]
    return max(alone or content["groups"], key=lambda g: g["accuracy"])


def teacher_sentences(content: Content) -> list[str]:
    """The smallest student and the least data that reach the teacher, or how far the best is below it."""
    teacher, least = content["teacher"], content["least_to_reach_teacher"]
    if not teacher:
        return []
    if not least:
        return [f"Teacher: {percent(teacher)} of {teacher['n']:,} test reviews."]
    alone = [r for r in least if not METHODS[r["method"]].rationale_as_input] or least
    reached = [r for r in alone if r["fraction"] is not None]
    of = f"its teacher, {percent(teacher)} on the same {teacher['n']:,} reviews"
    if not reached:
        nearest = max(alone, key=lambda r: r["difference"])
        beyond = {"opposite": "beyond chance", "not shown": "within chance", "holds": ""}[nearest["verdict"]]
        return [
            f"No student reaches {of}: the nearest, {arm(nearest)} at {format_percent(nearest['at'])} ({nearest['size']}), "
            f"differs by {points(nearest)} points, {beyond}."
        ]
    smallest = min(reached, key=lambda r: (r["parameters"], r["fraction"]))
    fewest = min(reached, key=lambda r: (r["fraction"], r["parameters"]))
    both = " with the least data" if fewest is smallest else ""
    sentences = [f"The smallest student{both} that reaches {of}: {reaching(smallest)}."]
    return sentences if both else [*sentences, f"The least data that reach it: {reaching(fewest)}."]


def reaching(r: dict[str, Any]) -> str:
    beyond = "above it beyond chance" if r["verdict"] == "holds" else "not above it beyond chance"
    return (
        f"{arm(r)}, {size_title(r)}, at {format_percent(r['fraction'])} ({r['reviews']:,} reviews), {r['accuracy'] * 100:.1f} %, "
        f"{points(r)} points, {beyond}"
    )


def serving_sentences(content: Content) -> list[str]:
    """The champion and its latency, where there are any."""
    sentences = []
    if champion := content["champion"]:
        sentences.append(
            f"Champion, by validation: {champion['method']} at {format_percent(champion['fraction'])}, {champion['model_uri']}."
        )
    if figures := content["serving"]:
        sentences.append(
            f"Served, one client: median {figures['p50_ms']} ms, 95th percentile {figures['p95_ms']} ms "
            f"({figures['requests']} requests)."
        )
    return sentences
