"""Reviews → annotations: a strategy asks, the store answers what it knows, the engine the rest."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cotd import assets
from cotd.annotations import annotations_digest
from cotd.completions import CompletionStore, Request
from cotd.config import StudyConfig, TeacherConfig, digest
from cotd.errors import CotdError
from cotd.hub import first_sentence, hub_commit
from cotd.methods import METHODS
from cotd.progress import track
from cotd.prompts import load_prompts
from cotd.reviews import Reviews
from cotd.sources import load_reviews, noun
from cotd.statistics import accuracy_interval
from cotd.strategies import STRATEGIES, Completion, Teacher, TeacherOutput
from cotd.student import model_digest, resolve_model
from cotd.task import get_task
from cotd.trials import write_json

Complete = Callable[[Sequence[Request]], Iterator[list[Completion]]]


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
    def quarantine(self) -> Path:
        return self.directory / "quarantined_reviews.parquet"

    @property
    def summary(self) -> Path:
        return self.directory / "summary.json"

    @classmethod
    def of(cls, config: StudyConfig) -> AnnotationFiles:
        return cls(config.directory / "annotations")


def annotate(config: StudyConfig, complete: Complete | None = None) -> dict[str, Any]:
    """Annotates a study's training reviews, and scores the teacher on its test reviews.

    Whatever the completion store knows is not asked again, so that a run that was stopped goes on where it was, and
    a finished one does nothing.

    Args:
        complete: answers requests; the vLLM engine unless given.

    Returns:
        The summary, which is also in `summary.json`: counts, the teacher's accuracy with its interval, calibration,
        quarantine reasons, tokens and seconds.

    Raises:
        CotdError: bad input, before any worker starts.
    """
    started = time.perf_counter()
    check_gold(config, reviews := load_reviews(config.data))
    task = get_task(config.data.task)
    prompts = load_prompts(task, noun(config.data), config.teacher.prompts)
    teacher = load_teacher(config.teacher)
    store = CompletionStore(config.directory.parent / "completions")
    usage: Counter[str] = Counter()

    with contextlib.ExitStack() as stack:
        engine = functools.cache(lambda: complete or start_engine(config, teacher, stack))

        def ask(requests: Sequence[Request], what: str) -> dict[str, Completion]:
            return answer(requests, what, store, usage, engine)

        output = STRATEGIES[config.teacher.strategy](teacher, reviews, task, prompts, ask)
    files = AnnotationFiles.of(config)
    files.directory.mkdir(parents=True, exist_ok=True)
    write_parquet(output.annotations, files.annotations)
    write_parquet(output.test, files.teacher_test)
    write_parquet(reviews.quarantine, files.quarantine)
    summary = summarise(config, reviews, output, usage, time.perf_counter() - started)
    write_json(files.summary, summary)
    return summary


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
    from transformers import AutoTokenizer

    advice = " Check teacher.model and the network, or use embedded:smollm2-135m-instruct, which needs none."
    source = resolve_model(config.model)
    local = Path(source).is_dir()
    if assets.is_embedded(config.model):
        asset = assets.get_asset(config.model)
        revision = f"{asset.package.name} {asset.package.version}, conversion {asset.version}" if asset.package else "built"
    else:
        revision = model_digest(source) if local else hub_commit(source, config.revision, advice)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=None if local else revision, local_files_only=local)
    except (OSError, ValueError) as error:
        raise CotdError(f"cannot load the teacher '{config.model}': {first_sentence(error)}{advice}") from error

    def fit(text: str, limit: int) -> str:
        if len(text) <= limit:  # a token has at least one character
            return text
        ids = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return text if len(ids["input_ids"]) <= limit else text[: ids["offset_mapping"][limit - 1][1]]

    def first_token(word: str) -> int:
        return tokenizer(word, add_special_tokens=False)["input_ids"][0]

    return Teacher(config.model, revision, first_token, fit, config)


def answer(
    requests: Sequence[Request], what: str, store: CompletionStore, usage: Counter[str], engine: Callable[[], Complete]
) -> dict[str, Completion]:
    """Completions for requests: from the store where it has them, else from the engine, kept batch by batch.

    Those that failed are among them, with their `error`; they are asked again next time.

    Raises:
        CotdError: nothing was answered, now or before.
    """
    unique = {r.key: r for r in requests}
    known = store.answers(unique)
    missing = [r for key, r in unique.items() if key not in known]
    usage["requests"] += len(unique)
    usage["from_store"] += len(known)
    if not missing:
        return known
    complete = engine()
    failures: dict[str, Completion] = {}
    with track(f"{what} ({len(known):,} in store)" if known else what, len(missing), "rows") as advance:
        for batch in complete(missing):
            store.append(batch)
            for completion in batch:
                if completion["error"]:
                    failures[completion["key"]] = completion
                else:
                    known[completion["key"]] = completion
                    usage["prompt_tokens"] += completion["prompt_tokens"]
                    usage["output_tokens"] += completion["output_tokens"]
            advance(len(batch))
    if failures and not known:
        why = next(iter(failures.values()))["error"]
        raise CotdError(f"the teacher failed on all {len(missing)} requests for {what}: {why}")
    usage["failed"] += len(failures)
    return known | failures


def start_engine(config: StudyConfig, teacher: Teacher, stack: contextlib.ExitStack) -> Complete:
    """Starts Ray, if it does not run, and the engine; `stack` ends them."""
    from pipelines.cluster import ray_session
    from pipelines.engine import require_engine, teacher_engine

    require_engine()
    stack.enter_context(ray_session())
    model = resolve_model(config.teacher.model)
    revision = None if Path(model).is_dir() else teacher.revision
    return stack.enter_context(teacher_engine(model, config.teacher.engine, revision))


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    scratch = path.with_name(path.name + ".part")
    table.to_parquet(scratch, index=False)
    scratch.replace(path)


def summarise(
    config: StudyConfig, reviews: Reviews, output: TeacherOutput, usage: Counter[str], seconds: float
) -> dict[str, Any]:
    """What the run did, for `summary.json`, MLflow and the terminal."""
    annotations, test = output.annotations, output.test[output.test["gold"].notna()]
    correct = (test["gold"] == test["predicted"]).to_numpy()
    accuracy, low, high = accuracy_interval(correct)
    own = annotations[~annotations["gold_conditioned"]]
    gold = reviews.table.set_index("id")["label"]
    judged = own[own["review_id"].map(gold).notna() & own["label"].notna() & (own["sample"] == 0)]
    train_accuracy = float((judged["label"] == judged["review_id"].map(gold)).mean()) if len(judged) else None
    return {
        "study": config.name,
        "reviews": reviews.counts,
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
        "inputs": annotation_inputs(config, reviews),
        "usage": dict(usage),
        "seconds": seconds,
        "digest": annotations_digest(annotations),
    }  # fmt: skip


def annotation_inputs(config: StudyConfig, reviews: Reviews) -> str:
    """A digest of all that decides a study's annotations: teacher, prompts and reviews, but not where the engine runs."""
    prompts = load_prompts(get_task(config.data.task), noun(config.data), config.teacher.prompts)
    return digest([config.teacher.model_dump(exclude={"engine"}), prompts.hash, reviews.digest()])


def read_annotations(config: StudyConfig) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """A study's annotations and their summary, or None where they have not been made."""
    files = AnnotationFiles.of(config)
    if not files.summary.is_file():
        return None
    return pd.read_parquet(files.annotations), json.loads(files.summary.read_text(encoding="utf-8"))


def read_teacher_test(path: Path | str | None) -> dict[str, str] | None:
    """Test review id → the teacher's own label, of a study's `teacher_test` file; None where there is none."""
    if path is None:
        return None
    table = pd.read_parquet(path)
    return table[table["predicted"].notna()].set_index("review_id")["predicted"].to_dict()
