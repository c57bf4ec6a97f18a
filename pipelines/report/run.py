"""A study's report: `report.md`, `report.html`, `report.json` and figures in the study's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cotd.errors import CotdError
from cotd.evaluation.comparisons import draws_for
from cotd.evaluation.statistics import accuracy_metrics, group_codes
from cotd.storage.sync import sync_study
from cotd.study.config import StudyConfig
from cotd.tasks.base import Task
from cotd.tasks.registry import is_built_in
from cotd.utils.files import read_json, write_bytes, write_json
from pipelines.annotate.files import read_annotations
from pipelines.cluster.lock import only_one_machine
from pipelines.other_settings import describe_others, finished_elsewhere
from pipelines.report.claims import compare_methods, compare_sizes, compare_with_teacher, judge_claims, least_to_reach
from pipelines.report.examples import Witness, examples_page, students, teacher
from pipelines.report.figures import FILES, figures_of, rendered
from pipelines.report.labels import label_scores
from pipelines.report.ladder import cascade_of, ladder_of
from pipelines.report.page import report_page
from pipelines.report.rescoring import OtherSource, base_scores, transfer_folder, transfer_results, unseen_examples
from pipelines.report.results import Content, Results, baselines, group_trials, labelled_test, plan_so_far, read_results
from pipelines.report.text import EXAMPLES_PAGE, markdown
from pipelines.sweep.plan import Plan


@sync_study
def report(config: StudyConfig, other: OtherSource | None = None) -> Content:
    """Writes the report of a study, finished or not.

    Args:
        other: score the students on its examples in place of the study's own test examples; the report is then written to a
            folder of its own, `transfer/SOURCE` in the study's.

    Returns:
        What `report.json` holds.

    Raises:
        CotdError: there is nothing to report yet, neither a finished trial nor annotations; the study's inputs are bad; or
            the study trains or selects on all of the other examples.

    Example:
        >>> content = cotd.report(study)
        >>> content["study"], (study.directory / "report.html").is_file()
        ('mine', True)
    """
    with only_one_machine(config, "report", f"reporting on {config.name}", "its report is then written here."):
        plan, notes = plan_so_far(config)
        results = read_results(plan, notes)
        if other:
            folder = transfer_folder(config, other.name)
            content, tested = transfer_content(plan, results, other, folder), other.examples
        else:
            folder, content = config.directory, study_content(plan, results)
            require_no_richer(config, content)
            tested = labelled_test(pd.read_parquet(plan.examples))
        write_report(content, folder, examples_page(config.name, config.task, tested, said(plan, content, folder)))
        return content


def require_no_richer(config: StudyConfig, content: Content) -> None:
    """Raises a CotdError if the report in the folder has trials that this one lacks, although they are still there.

    It was then written with other settings, those of the sweep, which this command was not given.
    """
    try:
        written = {t["trial_id"] for t in read_json(config.directory / "report.json")["trials"]}
    except (OSError, ValueError, KeyError, TypeError):
        return
    reported = {t["trial_id"] for t in content["trials"]}
    others = [folder for folder in finished_elsewhere(config, reported) if folder.path.name in written]
    if others and len(reported) < len(written):
        raise CotdError(
            f"the report in {config.directory} has {len(written)} trials, and with these settings there are {len(reported)}: it is "
            f"left as it is. {describe_others(config, others)} To replace the report, delete its report.json."
        )


def said(plan: Plan, content: Content, folder: Path) -> list[Witness]:
    """What the teacher, if these are the study's own test examples, and its students say of test examples."""
    if content["trained_on"]:
        own = folder / "predictions"
        return students(content, lambda trial_id: (own / f"{trial_id}.parquet", own / "no-rationales"))
    trials = {t["trial_id"]: plan.folder_of(t["trial_id"]) for t in content["trials"]}
    by = content["teacher"]["model"] if content["teacher"] else "teacher"
    return [
        *teacher(by, plan.teacher_test, plan.held_out_rationales),
        *students(content, lambda trial_id: (trials[trial_id].predictions, trials[trial_id].rationales)),
    ]


def write_report(content: Content, folder: Path, examples: str) -> None:
    """Draws the figures, and writes every file of the report. Args: examples: the page of examples."""
    figures = figures_of(content)
    content["figures"] = [{"file": f.file, "title": f.title} for f in figures]
    drawn = {f.file: rendered(f, content) for f in figures}
    text = markdown(content)
    page = report_page(content["study"], text, {file: svg for file, (_, svg) in drawn.items()})
    folder.mkdir(parents=True, exist_ok=True)
    for stale in set(FILES) - drawn.keys():  # of a grid that was another when the report was last written
        (folder / stale).unlink(missing_ok=True)
    files = {file: png for file, (png, _) in drawn.items()}
    files |= {"report.md": text.encode(), "report.html": page.encode(), EXAMPLES_PAGE: examples.encode()}
    for name, data in files.items():
        write_bytes(folder / name, data)
    write_json(folder / "report.json", content)


def study_content(plan: Plan, results: Results) -> Content:
    """All that the report says, as `report.json` holds it, except its figures."""
    config = plan.config
    annotations = read_annotations(config) if plan.annotations else None
    summary = annotations[1] if annotations else None
    test = labelled_test(pd.read_parquet(plan.examples))
    later = [config.directory / name for name in ("champion.json", "serving.json")]  # stages that may not have run yet
    content = {
        **common_content(results, config.task, lambda trial_id: plan.folder_of(trial_id).predictions),
        "study": config.name,
        "source": config.data.source_name,
        "trained_on": None,  # the same
        "teacher": teacher_entry(summary, results),
        "annotation": annotation_costs(summary),
        **baselines(plan, fractions_of(results)),
        "bases": base_scores(plan, results, test, plan.cache),
        **{path.stem: read_json(path) if path.is_file() else None for path in later},
    }
    content["cascade"] = cascade_of(plan, content)
    return content | {"ladder": ladder_of(plan, content, results, summary)}


def transfer_content(plan: Plan, results: Results, other: OtherSource, folder: Path) -> Content:
    """The same for another source's examples, which have no teacher and no endpoint."""
    examples = unseen_examples(plan, other.examples)
    if examples.empty:
        raise CotdError(f"{other.name}: {plan.config.name} trains or selects on all its examples. Score on another source.")
    rescored = transfer_results(plan, results, examples, folder)
    return {
        **common_content(rescored, plan.config.task, lambda trial_id: folder / "predictions" / f"{trial_id}.parquet"),
        "study": plan.config.name,
        "source": other.name,
        "trained_on": plan.config.data.source_name,
        "left_out": len(other.examples) - len(examples),
        **baselines(plan, fractions_of(results), examples),
        "bases": base_scores(plan, rescored, examples, folder / "predictions"),
        **dict.fromkeys(("teacher", "annotation", "champion", "serving", "cascade")),
        "ladder": [],
    }


def fractions_of(results: Results) -> list[float]:
    return sorted({t["fraction"] for t in results.trials} or {1.0})


def teacher_entry(summary: dict[str, Any] | None, results: Results) -> dict[str, Any] | None:
    """The teacher's benchmark; None if it was not measured, as it is without gold labels."""
    if summary is None or not summary["teacher"]["n"]:
        return None
    teacher, correct = summary["teacher"], results.teacher_correct
    if results.groups is None or correct is None:
        return teacher
    known = ~np.isnan(correct)
    return teacher | accuracy_metrics(correct[known].astype(bool), group_codes(results.groups[known]))


def common_content(results: Results, task: Task, predictions: Callable[[str], Path]) -> Content:
    """What follows from which students were right about which examples.

    Args:
        predictions: trial id → the trial's predictions table.
    """
    groups = group_trials(results)
    comparisons = compare_methods(results, groups)
    teacher_comparisons = compare_with_teacher(results, groups)
    return {
        "task": {
            "name": task.name,
            "kind": task.kind,
            "noun": task.noun,
            "expected": task.expected(),
            "built_in": is_built_in(task),
        },
        "test_examples": len(results.gold),
        "test_groups": None if results.groups is None else int(results.groups.max()) + 1,
        "trials": results.trials,
        "missing": results.missing,
        "missing_trials": [m["title"] for m in results.missing],
        "notes": results.notes,
        "given_up": results.given_up,
        "groups": groups,
        "by_label": label_scores(results, groups, task, predictions),
        "comparisons": comparisons,
        "draws": draws_for(len(comparisons)),
        "claims": judge_claims(comparisons),
        "size_comparisons": compare_sizes(results, groups),
        "teacher_comparisons": teacher_comparisons,
        "least_to_reach_teacher": least_to_reach(groups, teacher_comparisons) if teacher_comparisons else [],
        "figures": [],
    }


def annotation_costs(summary: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the last run of `cotd annotate` took: completions needed and cached, tokens and price of the new ones.

    None where it took nothing: there was no run, or it imported labels and rationales from a file.
    """
    if summary is None or "imported" in summary:
        return None
    keys = ("requests", "from_store", "prompt_tokens", "output_tokens")
    return {**{key: summary["usage"].get(key, 0) for key in keys}, "cost": summary["spent"]["cost"]}
