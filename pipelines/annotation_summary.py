"""What an annotation run did and how good its annotations are: for `summary.json`, MLflow and the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cotd.annotations import annotations_digest
from cotd.completions import CompletionStore
from cotd.config import StudyConfig
from cotd.filters import REASON
from cotd.quality import label_quality, rationale_quality, vote_quality
from cotd.statistics import accuracy_interval
from cotd.strategies import TeacherOutput
from pipelines.annotation_job import Job
from pipelines.asking import Asker


def summarise(
    config: StudyConfig, job: Job, output: TeacherOutput, filtered: dict[str, int], ask: Asker, seconds: float
) -> dict[str, Any]:
    """What the run did, for `summary.json`, MLflow and the terminal."""
    annotations, test = output.annotations, output.test[output.test["gold"].notna()]
    correct = (test["gold"] == test["predicted"]).to_numpy()
    accuracy, low, high = accuracy_interval(correct) if len(correct) else (None, None, None)
    own = annotations[~annotations["gold_conditioned"]]
    gold = job.reviews.table.set_index("id")["label"]
    judged = own[own["review_id"].map(gold).notna() & own["label"].notna() & (own["sample"] == 0)]
    train_accuracy = float((judged["label"] == judged["review_id"].map(gold)).mean()) if len(judged) else None
    labels = label_quality(test["gold"], test["predicted"], test["label_probability"], job.task)
    if config.teacher.samples > 1 and "reliability" not in labels:
        labels |= vote_quality(own, gold)
    table = job.reviews.table
    looked_at = ((job.teacher.cut.get(i), text) for i, text in zip(table["id"], table["text"], strict=True))
    cut = sum(shown is not None and shown < len(job.teacher.unspecial(text)) for shown, text in looked_at)
    return {
        "study": config.name,
        "reviews": job.reviews.counts | {"cut": cut},
        "warnings": job.warnings + store_warnings(job.store),
        "teacher": {
            "model": config.teacher.model, "strategy": config.teacher.strategy, "accuracy": accuracy,
            "ci_low": low, "ci_high": high, "n": len(test), "accuracy_on_train": train_accuracy,
        },
        "calibration": output.calibration,
        "annotations": {
            "rows": len(annotations), "reviews": int(annotations["review_id"].nunique()),
            "usable": int(annotations["error"].isna().sum()),
            "quarantined": {str(k): int(v) for k, v in annotations["error"].value_counts().items()},
        },
        "held_out_rationales": {"reviews": len(output.rationales), "usable": sum(map(bool, output.rationales.values()))},
        "filters": filtered,
        "quality": {
            "labels": labels,
            "rationales": rationale_quality(annotations, job.task),
        },
        "inputs": job.inputs,
        "usage": dict(ask.usage),
        "spent": spent(ask),
        "seconds": seconds,
        "digest": annotations_digest(annotations),
    }  # fmt: skip


def store_warnings(store: CompletionStore) -> list[str]:
    """What to say of damaged shards."""
    if not store.unreadable:
        return []
    names = ", ".join(shard.rpartition("/")[2] for shard in store.unreadable[:5])
    more = ", …" if len(store.unreadable) > 5 else ""
    return [
        f"{len(store.unreadable):,} shards of {store.directory} are damaged and count as not there: {names}{more}. Delete them."
    ]


def spent(ask: Asker) -> dict[str, Any]:
    """What this run's new answers took: tokens, cost (None without prices), seconds of asking, rates; the limit reached."""
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
    yield f"{counts['usable']:,} usable annotations of {counts['reviews']:,} reviews: {path}"
    yield f"to read them in a browser: {path.with_suffix('.html')}"
    for reason, count in counts["quarantined"].items():
        yield f"  quarantined: {count:,} × {reason}"
    if (held_out := summary["held_out_rationales"])["reviews"]:
        yield f"{held_out['usable']:,} usable rationales of {held_out['reviews']:,} validation and test reviews"
    if cut := summary["reviews"]["cut"]:
        yield f"{cut:,} reviews were longer than teacher.max_review_tokens, and cut"
    if summary["calibration"]:
        yield f"calibrated on {summary['calibration']['used']}"
    labels, rationales = summary["quality"]["labels"], summary["quality"]["rationales"]
    kappa = (
        f", kappa {labels['kappa']:.2f} [{labels['kappa_low']:.2f}, {labels['kappa_high']:.2f}]" if "kappa" in labels else ""
    )
    if teacher["accuracy"] is None:
        yield "teacher: not measured, as no test review has a gold label"
    else:
        interval = f"[{teacher['ci_low']:.1%}, {teacher['ci_high']:.1%}]"
        yield f"teacher: {teacher['accuracy']:.1%} {interval} of {teacher['n']:,} test reviews{kappa}"
    if "calibration_error" in labels:
        yield f"calibration error {labels['calibration_error']:.3f} of {labels['confidence']}"
    for gold, given in labels.get("confusion", {}).items():
        yield f"  gold {gold}: " + ", ".join(f"{n:,} {label}" for label, n in given.items())
    if rationales["rows"]:
        words = rationales["words"]
        yield (
            f"rationales: {words['p5']:.0f} to {words['p95']:.0f} words (median {words['p50']:.0f}), {rationales['names_its_label']:.0%} "
            f"name their label, {rationales['near_duplicates']:.0%} nearly repeat another"
        )
    if spent["seconds"]:
        cost = f", cost {spent['cost']:,.4f}" if spent["cost"] is not None else ""
        yield (
            f"spent: {spent['prompt_tokens']:,} prompt and {spent['output_tokens']:,} answer tokens{cost}; "
            f"{spent['rows_per_second']:,.1f} answers and {spent['tokens_per_second']:,.0f} tokens a second"
        )
    if spent["limit_reached"]:
        yield f"stopped at teacher.budget.{spent['limit_reached']}; raise it and run again to go on from here"
    if any(not reason.startswith((REASON, "not asked")) for reason in counts["quarantined"]):
        yield "quarantined rows are asked about again with --retry-errors"
