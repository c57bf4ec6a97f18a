"""What an annotation run did and how good its annotations are: for `summary.json`, MLflow and the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.evaluation.statistics import accuracy_metrics, group_codes
from cotd.study.config import StudyConfig
from cotd.tasks.base import Task
from cotd.teachers.annotations import AnnotationsDigest
from cotd.teachers.filters import FILTERED, name_and_settings
from cotd.teachers.output import TeacherOutput
from cotd.teachers.quality import RationaleQuality, VoteQuality, label_quality
from cotd.teachers.store import CompletionStore
from cotd.teachers.student.model import StudentTeacher, whose_student
from pipelines.annotate.ask import Asker
from pipelines.annotate.job import Job

# Predicted labels that are listed of one gold label.
MOST_LABELS = 5


class Tally:
    """What is counted of annotations, some examples at a time.

    Args:
        votes: whether to count how far the samples of an example agree.
    """

    def __init__(self, task: Task, votes: bool):
        self.rows = self.examples = self.judged = self.correct = self.prompt_tokens = self.output_tokens = 0
        self.errors: Counter[str | None] = Counter()  # None counts the usable ones
        self.votes = VoteQuality() if votes else None
        self.rationales, self.digest = RationaleQuality(task), AnnotationsDigest()

    def add(self, annotations: pd.DataFrame, gold: pd.Series) -> None:
        """Adds all annotations of some examples, in the order of their ids; `gold` holds example id → gold label."""
        self.rows += len(annotations)
        self.examples += annotations["example_id"].nunique()
        error = annotations["error"].astype(object)
        self.errors.update(error.where(error.notna(), None))
        labelled = annotations[~annotations["gold_conditioned"]]
        once = labelled[labelled["sample"] == 0]
        self.prompt_tokens += int(once["prompt_tokens"].sum())
        self.output_tokens += int(once["output_tokens"].sum())
        first = once[once["label"].notna()]
        expected = first["example_id"].map(gold)
        self.judged += int(expected.notna().sum())
        self.correct += int((first["label"] == expected).sum())
        if self.votes:
            self.votes.add(labelled, gold)
        self.rationales.add(annotations)
        self.digest.add(annotations)


def summarise(config: StudyConfig, job: Job, output: TeacherOutput, tally: Tally, ask: Asker, seconds: float) -> dict[str, Any]:
    """What the run did, for `summary.json`, MLflow and the terminal."""
    test = output.test[output.test["gold"].notna()]
    groups = group_codes(job.examples.rows.take(job.examples.rows.positions(test["example_id"])).group_names())
    accuracy: dict[str, Any] = {"accuracy": None, "ci_low": None, "ci_high": None, "n": 0}
    if len(test):
        accuracy = accuracy_metrics((test["gold"] == test["predicted"]).to_numpy(), groups)
    labels = label_quality(test["gold"], test["predicted"], test["label_probability"], job.task, groups)
    if tally.votes and "reliability" not in labels:
        labels |= tally.votes.figures()
    filters = dict.fromkeys(name_and_settings(entry)[0] for entry in config.teacher.filters)
    held_out = [(block["rationale"] != "").to_numpy() for block in output.held_out.blocks()]
    return {
        "study": config.name, "examples": job.examples.counts | {"cut": job.teacher.count_cut(job.examples.rows)},
        "warnings": job.warnings + store_warnings(job.store) + order_warnings(output),
        "teacher": {
            "model": config.teacher.model, "strategy": config.teacher.strategy, **accuracy,
            "accuracy_on_train": tally.correct / tally.judged if tally.judged else None,
            "cost_of_a_million": cost_of_a_million(config, tally), **job.teacher.size,
        } | ({"student": job.teacher.provenance} if isinstance(job.teacher, StudentTeacher) else {}),
        "calibration": output.calibration,
        "annotations": {
            "rows": tally.rows, "examples": tally.examples, "usable": tally.errors[None],
            "quarantined": {reason: count for reason, count in tally.errors.most_common() if reason is not None},
        },
        "held_out_rationales": {"examples": sum(map(len, held_out)), "usable": int(sum(map(sum, held_out)))},
        "filters": {name: tally.errors[FILTERED + name] for name in filters},
        "quality": {"labels": labels, "rationales": tally.rationales.figures()},
        "inputs": job.inputs, "usage": dict(ask.usage), "spent": spent(ask), "seconds": seconds, "digest": str(tally.digest),
    } | ({"imported": output.imported.counts} if output.imported else {})  # fmt: skip


def cost_of_a_million(config: StudyConfig, tally: Tally) -> float | None:
    """What the teacher's labels and rationales of a million texts cost; None without prices, or where nothing was asked."""
    if config.teacher.imported or not tally.examples:
        return None
    prompt, output = (tokens * 1e6 / tally.examples for tokens in (tally.prompt_tokens, tally.output_tokens))
    return config.teacher.budget.cost(prompt, output)


def store_warnings(store: CompletionStore) -> list[str]:
    """A warning of damaged shards, if there are any."""
    if not store.unreadable:
        return []
    names = ", ".join(shard.rpartition("/")[2] for shard in store.unreadable[:5])
    names += ", …" if len(store.unreadable) > 5 else ""
    return [f"{len(store.unreadable):,} shards of {store.directory} are damaged and count as missing: {names}. Delete them."]


def order_warnings(output: TeacherOutput) -> list[str]:
    """A warning of completions that are no chains of thought, if there are any."""
    if not output.answered_first:
        return []
    return [
        f"{output.answered_first:,} completions have the label before the rationale, which then is no thought that led to it: the "
        "server sorts the keys. Ask one that keeps the order of a schema, or set teacher.api.json_completions: object."
    ]


def spent(ask: Asker) -> dict[str, Any]:
    """What new completions took: tokens, cost (None without prices), seconds, rates; and the limit that was reached."""
    new = ask.usage["requests"] - ask.usage["from_store"]
    tokens = ask.budget.prompt_tokens + ask.budget.output_tokens
    return {
        "prompt_tokens": ask.budget.prompt_tokens, "output_tokens": ask.budget.output_tokens, "cost": ask.budget.cost,
        "seconds": ask.seconds, "limit_reached": ask.budget.reached,
        "rows_per_second": new / ask.seconds if ask.seconds else None,
        "tokens_per_second": tokens / ask.seconds if ask.seconds else None,
    }  # fmt: skip


def summary_lines(summary: dict[str, Any], path: Path) -> Iterator[str]:
    """A summary in readable lines."""
    counts, teacher, spent = summary["annotations"], summary["teacher"], summary["spent"]
    yield f"{counts['usable']:,} usable annotations of {counts['examples']:,} examples: {path}"
    yield f"to read them in a browser: {path.with_suffix('.html')}"
    for warning in summary["warnings"]:
        if "before the rationale" in warning:
            yield f"warning: {warning}"
    for reason, count in counts["quarantined"].items():
        yield f"  quarantined: {count:,} × {reason}"
    imported = summary.get("imported")
    if imported:
        yield from import_lines(imported, path.with_name("quarantined_imported.parquet"))
    if (held_out := summary["held_out_rationales"])["examples"]:
        yield f"{held_out['usable']:,} usable rationales of {held_out['examples']:,} validation and test examples"
    if cut := summary["examples"]["cut"]:
        yield f"{cut:,} examples were longer than teacher.max_text_tokens, and cut"
    if summary["calibration"]:
        yield f"calibrated on {summary['calibration']['used']}"
    labels, rationales = summary["quality"]["labels"], summary["quality"]["rationales"]
    if "student" in teacher:
        yield f"the teacher is {whose_student(teacher['student'])}"
    if teacher["accuracy"] is None:
        yield "teacher: not measured, as no test example has a gold label"
    else:
        interval = f"[{teacher['ci_low']:.1%}, {teacher['ci_high']:.1%}]"
        parts = [f"teacher: {teacher['accuracy']:.1%} {interval} of {teacher['n']:,} test examples"]
        if "kappa" in labels:
            parts.append(f"kappa {labels['kappa']:.2f} [{labels['kappa_low']:.2f}, {labels['kappa_high']:.2f}]")
        if "roc_auc" in labels:
            parts.append(f"ROC-AUC {labels['roc_auc']:.3f}")
        yield ", ".join(parts)
    if "calibration_error" in labels:
        yield f"calibration error {labels['calibration_error']:.3f} of {labels['confidence']}"
    for gold, predicted in labels.get("confusion", {}).items():
        yield f"  gold {gold}: {confusion_words(predicted)}"
    if rationales["rows"]:
        words = rationales["words"]
        yield (
            f"rationales: {words['p5']:.0f} to {words['p95']:.0f} words (median {words['p50']:.0f}), {rationales['names_its_label']:.0%} "
            f"name their label, {rationales['near_duplicates']:.0%} nearly repeat another"
        )
    if spent["seconds"]:
        cost = f", cost {spent['cost']:,.4f}" if spent["cost"] is not None else ""
        yield (
            f"spent: {spent['prompt_tokens']:,} prompt and {spent['output_tokens']:,} output tokens{cost}; "
            f"{spent['rows_per_second']:,.1f} completions and {spent['tokens_per_second']:,.0f} tokens a second"
        )
    if spent["limit_reached"]:
        yield f"stopped at teacher.budget.{spent['limit_reached']}; raise it and run again to continue"
    if not imported and any(not reason.startswith((FILTERED, "not asked")) for reason in counts["quarantined"]):
        yield "quarantined rows are asked about again with --retry-errors"


def confusion_words(predicted: dict[str, int]) -> str:
    """The labels that were predicted of one gold label, the most common first if there are many: "40 refund, 3 bug"."""
    if len(predicted) > MOST_LABELS:
        common = Counter({label: n for label, n in predicted.items() if n}).most_common()
        predicted = dict(common[: MOST_LABELS - 1])
        if rest := sum(n for _, n in common[MOST_LABELS - 1 :]):
            predicted["others"] = rest
    return ", ".join(f"{n:,} {label}" for label, n in predicted.items()) or "no example"


def import_lines(counts: dict[str, Any], quarantine: Path | None) -> Iterator[str]:
    """What became of an imported file's rows, see `cotd.teachers.output.ImportedRows`.

    Args:
        quarantine: where those that are quarantined can be read; None where they were not written.
    """
    files = ", ".join(counts["files"])
    yield f"{counts['matched']:,} of {counts['rows']:,} rows of {files} are about {counts['examples']:,} examples"
    if counts["quarantined"]:
        yield "rows quarantined, of all splits" + (f", in {quarantine}:" if quarantine else ":")
    for reason, count in counts["quarantined"].items():
        yield f"  {count:,} × {reason}"
    if other := counts["other_labels"]:
        yield "  instead of labels: " + ", ".join(f"{count:,} × {label!r}" for label, count in other.items())
    for split, name in (("train", "training"), ("test", "test")):
        if missing := counts[f"without_row_{split}"]:
            yield f"{missing:,} {name} examples have no row"
