"""A study's report: `report.md`, `report.html`, `report.json` and figures in the study's folder."""

from __future__ import annotations

from typing import Any

from cotd.baselines import majority
from cotd.comparisons import draws_for
from cotd.config import StudyConfig
from cotd.storage import on_storage
from cotd.trials import write_json
from pipelines.annotation_files import read_annotations
from pipelines.report.claims import compare_methods, compare_with_teacher, judge_claims, least_to_reach
from pipelines.report.figures import FILES, figures_of, rendered
from pipelines.report.findings import Content
from pipelines.report.page import report_page
from pipelines.report.results import Results, group_trials, linear_baselines, plan_so_far, read_json, read_results
from pipelines.report.text import markdown, terminal
from pipelines.study import Plan

__all__ = ["report", "terminal"]


@on_storage
def report(config: StudyConfig) -> Content:
    """Writes the report of a study, finished or not, and returns what `report.json` holds.

    Raises:
        CotdError: there is nothing to report yet: no finished trial and no annotations; or the study's inputs are bad.
    """
    plan, notes = plan_so_far(config)
    content = content_of(plan, read_results(plan, notes))
    figures = figures_of(content)
    content["figures"] = [{"file": f.file, "title": f.title} for f in figures]
    drawn = {f.file: rendered(f, content) for f in figures}
    text = markdown(content)
    page = report_page(config.name, text, {file: svg for file, (_, svg) in drawn.items()})
    for stale in set(FILES) - drawn.keys():  # of a grid that was another when the report was last written
        (config.directory / stale).unlink(missing_ok=True)
    files = {file: png for file, (png, _) in drawn.items()} | {"report.md": text.encode(), "report.html": page.encode()}
    for name, written in files.items():
        scratch = config.directory / f"{name}.part"
        scratch.write_bytes(written)
        scratch.replace(config.directory / name)
    write_json(config.directory / "report.json", content)
    return content


def content_of(plan: Plan, results: Results) -> Content:
    """All that the report says, as `report.json` holds it, but for its figures."""
    config = plan.config
    found = read_annotations(config) if plan.annotations else None
    groups = group_trials(results)
    comparisons = compare_methods(results, groups)
    against_teacher = compare_with_teacher(results, groups)
    return {
        "study": config.name,
        "source": config.data.where,
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
        "teacher": found[1]["teacher"] if found and found[1]["teacher"]["n"] else None,  # one without gold was not measured
        "teacher_comparisons": against_teacher,
        "least_to_reach_teacher": least_to_reach(groups, against_teacher) if against_teacher else [],
        "annotation": annotation_costs(found),
        "majority": majority(results.gold),
        "tfidf": linear_baselines(plan, sorted({t["fraction"] for t in results.trials} or {1.0})),
        "champion": read_json(config.directory / "champion.json"),
        "serving": read_json(config.directory / "serving.json"),
        "figures": [],
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
