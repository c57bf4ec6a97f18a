"""Reviews → annotations: a strategy asks, the store answers what it knows, the engine the rest."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cotd import assets
from cotd.annotations import annotations_digest
from cotd.completions import CompletionStore
from cotd.config import StudyConfig, TeacherConfig, digest
from cotd.errors import CotdError
from cotd.filters import REASON, FilterContext, apply_filters
from cotd.hub import first_sentence, hub_commit
from cotd.methods import METHODS
from cotd.progress import say
from cotd.prompts import Prompts, load_prompts
from cotd.quality import label_quality, rationale_quality
from cotd.reviews import Reviews
from cotd.sources import load_reviews, noun
from cotd.statistics import accuracy_interval
from cotd.storage import on_storage
from cotd.strategies import STRATEGIES, Teacher, TeacherOutput, planned_requests, score_request
from cotd.student import model_digest, resolve_model
from cotd.task import Task, get_task
from cotd.trials import write_json
from pipelines.asking import Asker, Budget, Complete
from pipelines.browse import annotations_page
from pipelines.locking import only_one
from pipelines.runtime_env import require_lasting

SENTENCE_END = re.compile(r"[.!?…。！？][\"')\]”’]*(?=\s|$)")
# From this share of set-aside rows on, something other than a few bad rows is wrong.
MANY = 0.05
KEPT = "the other run's answers are kept and will not be asked again."


@dataclass(frozen=True)
class AnnotationFiles:
    """Where a study's annotations lie."""

    directory: Path

    @property
    def annotations(self) -> Path:
        return self.directory / "annotations.parquet"

    @property
    def teacher_test(self) -> Path:
        """The teacher's own labels of the test reviews."""
        return self.directory / "teacher_test.parquet"

    @property
    def held_out_rationales(self) -> Path:
        """The teacher's own rationales of validation and test reviews, where `teacher.held_out_rationales` asks for them."""
        return self.directory / "held_out_rationales.parquet"

    @property
    def quarantine(self) -> Path:
        return self.directory / "quarantined_reviews.parquet"

    @property
    def summary(self) -> Path:
        return self.directory / "summary.json"

    @property
    def page(self) -> Path:
        """The annotations to read in a browser."""
        return self.directory / "annotations.html"

    @classmethod
    def of(cls, config: StudyConfig) -> AnnotationFiles:
        return cls(config.directory / "annotations")


@on_storage
def annotate(
    config: StudyConfig, complete: Complete | None = None, *, yes: bool = False, retry_errors: bool = False
) -> dict[str, Any]:
    """Annotates a study's training reviews, and scores the teacher on its test reviews.

    Whatever the completion store knows is not asked again, so that a run that was stopped goes on where it was, and
    a finished one does nothing.

    Args:
        complete: answers requests; the configured engine or endpoint unless given.
        yes: an endpoint's price is accepted without a question.
        retry_errors: ask only about quarantined reviews and requests that failed, also those refused for good.

    Returns:
        The summary, which is also in `summary.json`: counts, the teacher's accuracy with its interval, calibration,
        quality, what filters took out, quarantine reasons, tokens, cost and seconds.

    Raises:
        CotdError: bad input, before any worker starts; another process annotates this study; the price was declined.
    """
    started = time.perf_counter()
    require_lasting(config)
    job = prepare(config)
    files = AnnotationFiles.of(config)
    for warning in job.warnings:
        say(f"  warning: {warning}")
    budget = Budget(config.teacher.budget, job.teacher.count)
    only = quarantined_ids(config) if retry_errors else None
    with contextlib.ExitStack() as stack:
        engine = functools.cache(lambda: complete or start_engine(config, job.teacher, stack))
        ask = Asker(job.store, engine, budget, only, retry_refused=retry_errors)
        if config.teacher.api and complete is None:
            check_price(config.teacher, job, ask, yes)
        stack.enter_context(only_one(files.directory, f"annotating {config.name}", KEPT))
        output = STRATEGIES[config.teacher.strategy](job.teacher, job.reviews, job.task, job.prompts, ask)
    if output.test["gold"].notna().sum() == 0:
        raise CotdError(
            f"teacher.budget.{budget.reached} was reached before the teacher was measured on a test review. Raise it, or lower "
            "data.test_rows; what is done is kept."
        )
    gold = job.reviews.table.set_index("id")["label"].dropna().to_dict()
    output.annotations, filtered = apply_filters(output.annotations, config.teacher.filters, FilterContext(job.task, gold))
    summary = summarise(config, job, output, filtered, ask, time.perf_counter() - started)
    write_parquet(output.annotations, files.annotations)
    write_parquet(output.test, files.teacher_test)
    files.held_out_rationales.unlink(missing_ok=True)
    if config.teacher.held_out_rationales:
        rationales = pd.DataFrame(sorted(output.rationales.items()), columns=["review_id", "rationale"])
        write_parquet(rationales, files.held_out_rationales)
    write_parquet(job.reviews.quarantine, files.quarantine)
    lines = list(summary_lines(summary, files.annotations))
    reliability = summary["quality"]["labels"].get("reliability")
    write_text(files.page, annotations_page(config.name, output.annotations, job.reviews.table, job.task, lines, reliability))
    write_json(files.summary, summary)
    return summary


@dataclass(frozen=True)
class Job:
    """What an annotation run works on, checked."""

    reviews: Reviews
    task: Task
    prompts: Prompts
    teacher: Teacher
    store: CompletionStore
    warnings: list[str]


def completions_place(config: StudyConfig) -> Path | str:
    """Where the studies of one storage keep what teachers answered, unless `teacher.store` names another place."""
    return f"{config.storage.rstrip('/')}/completions" if config.remote else config.local_storage / "completions"


def prepare(config: StudyConfig) -> Job:
    """Loads and checks all that a run needs, and starts nothing.

    Raises:
        CotdError: bad reviews, prompts or teacher; missing gold labels; no such store.
    """
    check_gold(config, reviews := load_reviews(config.data))
    task = get_task(config.data.task)
    prompts = load_prompts(task, noun(config.data), config.teacher.prompts)
    store = CompletionStore(config.teacher.store or completions_place(config))
    return Job(reviews, task, prompts, load_teacher(config.teacher), store, quarantine_warnings(reviews))


def preview(config: StudyConfig, rows: int) -> Iterator[str]:
    """The exact prompts of the first requests of each kind, and what a run would ask, without asking."""
    job = prepare(config)
    ask = Asker(job.store, no_engine, Budget(config.teacher.budget, job.teacher.count))
    shown: Counter[str] = Counter()
    for what, review, request in planned_requests(job.teacher, job.reviews, job.task, job.prompts):
        shown[what] += 1
        if shown[what] <= rows:
            tokens = job.teacher.count(request.prompt)
            yield f"--- {what}, review {review}: about {tokens} tokens; {json.dumps(request.sampling, ensure_ascii=False)}"
            yield request.prompt
    yield f"--- prompts {job.prompts.hash}, teacher {job.teacher.name}, revision {job.teacher.revision}"
    yield str(ask.estimate(planned_requests(job.teacher, job.reviews, job.task, job.prompts)))


def no_engine() -> Complete:
    raise AssertionError("an estimate asks nothing")


def check_price(config: TeacherConfig, job: Job, ask: Asker, yes: bool) -> None:
    """Checks that the endpoint can do what is wanted, says what a run is going to cost, and asks whether to go on.

    Raises:
        CotdError: it cannot; there is nobody to ask, and no `yes`; the answer was no.
    """
    from pipelines.api import api_key, check_endpoint

    assert config.api is not None
    api_key(config.api)
    expected = ask.estimate(planned_requests(job.teacher, job.reviews, job.task, job.prompts))
    if not expected.requests:
        return
    scoring = config.strategy == "score_then_explain"
    probe = score_request(job.teacher, job.task, job.prompts, "Good.") if scoring else None
    check_endpoint(config.model, config.api, probe)
    say(f"  {config.model} at {config.api.base_url}: {expected}")
    if limits := [
        f"{name} {value:,}" for name, value in config.budget.model_dump(include={"max_cost", "max_tokens"}).items() if value
    ]:
        say(f"  the run stops before it passes {' or '.join(limits)}")
    if yes or expected.cost == 0:
        return
    if not sys.stdin.isatty():
        raise CotdError(f"{expected}. Nobody is at a terminal to agree: run again with --yes, or with a lower data.train_rows.")
    if input("  go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CotdError("not started; nothing was asked.")


def quarantined_ids(config: StudyConfig) -> set[str]:
    """The reviews that the study's last run has no usable annotation, or no label, for.

    Raises:
        CotdError: there was no run yet.
    """
    found = read_annotations(config)
    if found is None:
        raise CotdError(
            f"{config.name} has no annotations yet, so none failed. Run `cotd annotate CONFIG` without --retry-errors."
        )
    failed = found[0][found[0]["error"].notna() & ~found[0]["error"].fillna("").str.startswith((REASON, "not asked"))]
    test = pd.read_parquet(AnnotationFiles.of(config).teacher_test)
    return {*failed["review_id"], *test[test["predicted"].isna()]["review_id"]}


def quarantine_warnings(reviews: Reviews) -> list[str]:
    """What to say when many of a source's rows were set aside."""
    rows, aside = reviews.counts["rows"], len(reviews.quarantine)
    if aside < MANY * rows:
        return []
    reasons = [f"{count:,} × {reason}" for reason, count in reviews.quarantine["reason"].value_counts().head(5).items()]
    warning = f"{aside:,} of {rows:,} rows are set aside: {'; '.join(reasons)}."
    if any(" is not one of " in reason for reason in reasons):
        warning += (
            " Is data.columns.label the right column? Stars or scores have to be mapped to labels first: a bare 1 counts as "
            "positive, a bare 0 as negative."
        )
    return [warning]


def check_gold(config: StudyConfig, reviews: Reviews) -> None:
    """Raises, all at once, what the study needs gold labels for and does not have."""
    problems = []
    labelled = reviews.table[reviews.table["label"].notna()]
    for split in ("validation", "test"):
        if (labelled["split"] == split).sum() == 0:
            problems.append(
                f"the {split} split has no gold label, and every score is against gold. Name the label column in "
                "data.columns.label, or give labelled test rows (data.source: {train: …, test: …})."
            )
    trains_on_gold = any(METHODS[m].labels == "gold" for m in config.grid.method)
    for split in ("train", "validation", "test") if trains_on_gold else ("validation", "test"):
        labels = labelled.loc[labelled["split"] == split, "label"]
        if labels.nunique() == 1:
            advice = f"Check data.columns.label, or take more rows (data.{split}_rows)."
            problem = f"the {split} split has gold labels of one kind only: {len(labels):,} × {labels.iloc[0]}. {advice}"
            problems.append(" ".join([problem, *quarantine_warnings(reviews)]))
    if not (labelled["split"] == "train").any():
        for method in config.grid.method:
            if METHODS[method].labels == "gold":
                problems.append(
                    f"method '{method}' trains on gold labels, and no training review has one. "
                    "Name the label column in data.columns.label, or take it out of grid.method."
                )
    if problems:
        raise CotdError(*problems)


def load_teacher(config: TeacherConfig) -> Teacher:
    """The teacher's name, revision and tokenizer.

    Raises:
        CotdError: there is no such model.
    """
    if config.api is None:
        tokenizer, revision = load_tokenizer(config.model, config.revision)
    else:
        tokenizer = load_tokenizer(config.api.tokenizer, None)[0] if config.api.tokenizer else None
        extra = f", extra_body {digest(config.api.extra_body)}" if config.api.extra_body else ""
        revision = f"{config.revision or config.api.base_url} {config.api.endpoint}{extra}"
    if tokenizer is None:
        return Teacher(config.model, revision, None, fit_by_length, config, tokens_by_length)

    def offsets(text: str, limit: int) -> list[tuple[int, int]]:
        # Texts of megabytes take long, and no token has so many characters.
        encoded = tokenizer(text[: 64 * limit], add_special_tokens=False, return_offsets_mapping=True)
        return encoded["offset_mapping"]

    def fit(text: str, limit: int) -> str:
        if len(text) <= limit:  # a token has at least one character
            return text
        found = offsets(text, limit)
        return text if len(found) <= limit else cut_text(text, found[limit - 1][1])

    @functools.cache  # a few words, and every request asks
    def first_token(word: str) -> int:
        return tokenizer(word, add_special_tokens=False)["input_ids"][0]

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    return Teacher(config.model, revision, first_token, fit, config, count, tuple(tokenizer.all_special_tokens))


def load_tokenizer(model: str, revision: str | None) -> tuple[Any, str]:
    """A model's tokenizer, and its revision."""
    from transformers import AutoTokenizer

    advice = " Check teacher.model and the network, or use embedded:smollm2-135m-instruct, which needs none."
    source = resolve_model(model)
    local = Path(source).is_dir()
    if assets.is_embedded(model):
        asset = assets.get_asset(model)
        revision = f"{asset.package.name} {asset.package.version}, conversion {asset.version}" if asset.package else "built"
    else:
        revision = model_digest(source) if local else hub_commit(source, revision, advice)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=None if local else revision, local_files_only=local)
    except (OSError, ValueError) as error:
        raise CotdError(f"cannot load the teacher '{model}': {first_sentence(error)}{advice}") from error
    return tokenizer, revision


def tokens_by_length(text: str) -> int:
    """About how many tokens a text has: one for four bytes of UTF-8, as English has in most vocabularies."""
    return -(-len(text.encode()) // 4)


def fit_by_length(text: str, limit: int) -> str:
    """A text cut to about `limit` tokens."""
    if tokens_by_length(text) <= limit:
        return text
    return cut_text(text, len(text.encode()[: 4 * limit].decode(errors="ignore")))


def cut_text(text: str, end: int) -> str:
    """At most the first `end` characters of a text: to the last sentence's end in their second half, else to a word's."""
    sentences = [m.end() for m in SENTENCE_END.finditer(text[: end + 1]) if end // 2 <= m.end() <= end]
    if sentences:
        return text[: sentences[-1]]
    space = text.rfind(" ", end // 2, end + 1)
    return text[: space if space > 0 else end]


def start_engine(config: StudyConfig, teacher: Teacher, stack: contextlib.ExitStack) -> Complete:
    """Starts Ray, if it does not run, and the engine; or the client of an endpoint. `stack` ends them."""
    if config.teacher.api:
        from pipelines.api import api_engine

        return stack.enter_context(api_engine(config.teacher.model, config.teacher.api, teacher.count))
    from pipelines.cluster import ray_session
    from pipelines.engine import require_engine, teacher_engine

    require_engine()
    stack.enter_context(ray_session())
    model = resolve_model(config.teacher.model)
    revision = None if Path(model).is_dir() else teacher.revision
    return stack.enter_context(teacher_engine(model, config.teacher.engine, revision))


def write_text(path: Path, text: str) -> None:
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    scratch = path.with_name(path.name + ".part")
    table.to_parquet(scratch, index=False)
    scratch.replace(path)


def summarise(
    config: StudyConfig, job: Job, output: TeacherOutput, filtered: dict[str, int], ask: Asker, seconds: float
) -> dict[str, Any]:
    """What the run did, for `summary.json`, MLflow and the terminal."""
    annotations, test = output.annotations, output.test[output.test["gold"].notna()]
    correct = (test["gold"] == test["predicted"]).to_numpy()
    accuracy, low, high = accuracy_interval(correct)
    own = annotations[~annotations["gold_conditioned"]]
    gold = job.reviews.table.set_index("id")["label"]
    judged = own[own["review_id"].map(gold).notna() & own["label"].notna() & (own["sample"] == 0)]
    train_accuracy = float((judged["label"] == judged["review_id"].map(gold)).mean()) if len(judged) else None
    table = job.reviews.table
    lengths = dict(zip(table["id"], table["text"].str.len(), strict=True))
    return {
        "study": config.name,
        "reviews": job.reviews.counts | {"cut": sum(n < lengths[i] for i, n in job.teacher.cut.items())},
        "warnings": job.warnings,
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
            "labels": label_quality(test["gold"], test["predicted"], test["label_probability"], job.task),
            "rationales": rationale_quality(annotations, job.task),
        },
        "inputs": annotation_inputs(config, job.reviews),
        "usage": dict(ask.usage),
        "spent": spent(ask),
        "seconds": seconds,
        "digest": annotations_digest(annotations),
    }  # fmt: skip


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
    interval = f"[{teacher['ci_low']:.1%}, {teacher['ci_high']:.1%}]"
    kappa = (
        f", kappa {labels['kappa']:.2f} [{labels['kappa_low']:.2f}, {labels['kappa_high']:.2f}]" if "kappa" in labels else ""
    )
    error = f", calibration error {labels['calibration_error']:.3f}" if "calibration_error" in labels else ""
    yield f"teacher: {teacher['accuracy']:.1%} {interval} of {teacher['n']:,} test reviews{kappa}{error}"
    for gold, given in labels["confusion"].items():
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


def annotation_inputs(config: StudyConfig, reviews: Reviews) -> str:
    """A digest of all that decides a study's annotations: teacher, prompts and reviews, but not where the engine runs."""
    prompts = load_prompts(get_task(config.data.task), noun(config.data), config.teacher.prompts)
    return digest([config.teacher.decisive(), prompts.hash, reviews.digest()])


def read_annotations(config: StudyConfig) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """A study's annotations and their summary, or None where they have not been made."""
    files = AnnotationFiles.of(config)
    if not files.summary.is_file():
        return None
    return pd.read_parquet(files.annotations), json.loads(files.summary.read_text(encoding="utf-8"))


def read_rationales(path: Path | str | None) -> dict[str, str] | None:
    """Validation or test review id → the teacher's own rationale, "" where it has none; None where there is no file."""
    if path is None:
        return None
    table = pd.read_parquet(path)
    return dict(zip(table["review_id"], table["rationale"], strict=True))


def read_teacher_test(path: Path | str | None) -> dict[str, str] | None:
    """Test review id → the teacher's own label, of a study's `teacher_test` file; None where there is none."""
    if path is None:
        return None
    table = pd.read_parquet(path)
    return table[table["predicted"].notna()].set_index("review_id")["predicted"].to_dict()
