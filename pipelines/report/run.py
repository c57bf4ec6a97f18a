"""A study's report: `report.md`, `report.html`, `report.json` and figures in the study's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.errors import CotdError
from cotd.evaluation.baselines import majority
from cotd.evaluation.comparisons import draws_for
from cotd.storage.working_copy import sync_study
from cotd.study.config import StudyConfig
from cotd.utils.files import write_bytes, write_json
from pipelines.annotate.files import read_annotations
from pipelines.report.claims import compare_methods, compare_sizes, compare_with_teacher, judge_claims, least_to_reach
from pipelines.report.figures import FILES, figures_of, rendered
from pipelines.report.findings import Content
from pipelines.report.page import report_page
from pipelines.report.results import Results, group_trials, linear_baselines, plan_so_far, read_json, read_results
from pipelines.report.scoring import base_scores
from pipelines.report.text import markdown, terminal
from pipelines.report.transfer import transfer_folder, transferred, unseen_reviews
from pipelines.sweep.plan import Plan

__all__ = ["Elsewhere", "report", "terminal", "transfer_folder"]


@dataclass(frozen=True)
class Elsewhere:
    """Reviews of another source, with gold labels, to score a study's students on."""

    source: str
    reviews: pd.DataFrame


@sync_study
def report(config: StudyConfig, elsewhere: Elsewhere | None = None) -> Content:
    """Writes the report of a study, finished or not.

    Args:
        elsewhere: score the students on these in place of the study's own test reviews; the report then lies in a folder
            of its own, `transfer/SOURCE` in the study's.

    Returns:
        What `report.json` holds.

    Raises:
        CotdError: there is nothing to report yet: no finished trial and no annotations; or the study's inputs are bad; or
            none of the other reviews is new to the study.
    """
    plan, notes = plan_so_far(config)
    results = read_results(plan, notes)
    folder = config.directory
    if elsewhere:
        folder = transfer_folder(config, elsewhere.source)
        content = content_elsewhere(plan, results, elsewhere, folder)
    else:
        content = content_of(plan, results)
    write_report(content, folder)
    return content


def write_report(content: Content, folder: Path) -> None:
    """Draws the figures, and writes every file of the report."""
    figures = figures_of(content)
    content["figures"] = [{"file": f.file, "title": f.title} for f in figures]
    drawn = {f.file: rendered(f, content) for f in figures}
    text = markdown(content)
    page = report_page(content["study"], text, {file: svg for file, (_, svg) in drawn.items()})
    folder.mkdir(parents=True, exist_ok=True)
    for stale in set(FILES) - drawn.keys():  # of a grid that was another when the report was last written
        (folder / stale).unlink(missing_ok=True)
    files = {file: png for file, (png, _) in drawn.items()} | {"report.md": text.encode(), "report.html": page.encode()}
    for name, written in files.items():
        write_bytes(folder / name, written)
    write_json(folder / "report.json", content)


def content_of(plan: Plan, results: Results) -> Content:
    """All that the report says, as `report.json` holds it, but for its figures."""
    config = plan.config
    found = read_annotations(config) if plan.annotations else None
    return {
        **figures_on(results),
        "study": config.name,
        "source": config.data.where,
        "trained_on": None,  # the same
        "teacher": found[1]["teacher"] if found and found[1]["teacher"]["n"] else None,  # one without gold was not measured
        "annotation": annotation_costs(found),
        "tfidf": linear_baselines(plan, fractions_of(results)),
        "bases": base_scores(plan, results, own_test_reviews(plan), plan.cache) if results.trials else [],
        "champion": read_json(config.directory / "champion.json"),
        "serving": read_json(config.directory / "serving.json"),
        "figures": [],
    }


def content_elsewhere(plan: Plan, results: Results, elsewhere: Elsewhere, folder: Path) -> Content:
    """The same of another source's reviews, which have no teacher and no endpoint."""
    reviews = unseen_reviews(plan, elsewhere.reviews)
    if reviews.empty:
        raise CotdError(f"{elsewhere.source}: every review of it is one that {plan.config.name} trains or selects on.")
    found = transferred(plan, results, reviews, folder)
    return {
        **figures_on(found),
        "study": plan.config.name,
        "source": elsewhere.source,
        "trained_on": plan.config.data.where,
        "left_out": len(elsewhere.reviews) - len(reviews),
        "teacher": None, "annotation": None,
        "tfidf": linear_baselines(plan, fractions_of(results), reviews),
        "bases": base_scores(plan, found, reviews, folder / "predictions"),
        "champion": None, "serving": None, "figures": [],
    }  # fmt: skip


def own_test_reviews(plan: Plan) -> pd.DataFrame:
    """The study's own test reviews that have gold labels."""
    reviews = pd.read_parquet(plan.reviews)
    return reviews[(reviews["split"] == "test") & reviews["label"].notna()]


def fractions_of(results: Results) -> list[float]:
    return sorted({t["fraction"] for t in results.trials} or {1.0})


def figures_on(results: Results) -> Content:
    """What follows from which students were right about which reviews."""
    groups = group_trials(results)
    comparisons = compare_methods(results, groups)
    against_teacher = compare_with_teacher(results, groups)
    return {
        "test_reviews": len(results.gold),
        "trials": results.trials,
        "missing": results.missing,
        "missing_trials": [m["title"] for m in results.missing],
        "notes": results.notes,
        "given_up": results.given_up,
        "groups": groups,
        "comparisons": comparisons,
        "draws": draws_for(len(comparisons)),
        "claims": judge_claims(comparisons),
        "size_comparisons": compare_sizes(results, groups),
        "teacher_comparisons": against_teacher,
        "least_to_reach_teacher": least_to_reach(groups, against_teacher) if against_teacher else [],
        "majority": majority(results.gold),
    }


def annotation_costs(found: tuple[Any, dict[str, Any]] | None) -> dict[str, Any] | None:
    """What the last run of `cotd annotate` took: answers wanted, those known before, tokens and price of the new ones.

    None where it took nothing: there was none, or it read answers from a file.
    """
    if found is None or "answers" in found[1]:
        return None
    summary = found[1]
    keys = ("requests", "from_store", "prompt_tokens", "output_tokens")
    return {**{key: summary["usage"].get(key, 0) for key in keys}, "cost": summary["spent"]["cost"]}
