"""Chooses the champion: the best distilled student of a study, by validation accuracy. Other students get other aliases."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.errors import CotdError, nearest
from cotd.evaluation.metrics import accuracy_table, predictions_table, score_predictions
from cotd.evaluation.seen import was_seen
from cotd.storage.sync import sync_study
from cotd.students.base_models import find_student
from cotd.students.student import Student
from cotd.study.config import StudyConfig
from cotd.tasks.registry import parse_task
from cotd.tracking.registry import CHALLENGER, CHAMPION, Registry, require_alias
from cotd.tracking.runs import StudyTracker
from cotd.training.folder import merit, rank
from cotd.training.methods import METHODS
from cotd.training.trial import Trial
from cotd.utils.files import write_json
from pipelines.cluster.lock import only_one_machine
from pipelines.other_settings import describe_others, finished_elsewhere
from pipelines.sweep.plan import Plan, plan_study

Finished = tuple[Trial, dict[str, Any]]


@dataclass(frozen=True)
class Promotion:
    """What `promote` decided.

    Attributes:
        champion: the version that has the alias now, `champion` or the one that was asked for: method, fraction, size, seed,
            mlflow_run_id, model_uri, version, moved.
        moved: whether the alias was moved.
        sentences: what happened, for the terminal.
    """

    champion: dict[str, Any]
    moved: bool
    sentences: list[str]


@sync_study
def promote(
    config: StudyConfig, all_methods: bool = False, size: str | None = None, trial_id: str | None = None, alias: str = CHAMPION
) -> Promotion:
    """Registers the best student by validation accuracy and moves the alias `champion` to it, or another alias.

    Students that read the teacher's rationales are left out: they cannot predict without them. The test split plays no
    part. The alias `champion` stays where the present champion is as good on the same validation examples, without those that
    it was trained on; any other is moved in any case.

    Args:
        all_methods: choose among all methods; otherwise among those that a teacher contributes to.
        size: choose among students of this size; None for all.
        trial_id: the student of this trial, of any method and size.
        alias: what the version is to be called.

    Raises:
        CotdError: no finished trial to choose from, no such size or trial, an alias that cannot be one, another promotion of this
            study is under way, or the present champion is of another task.

    Example:
        >>> cotd.promote(study, all_methods=True).champion["method"]
        'finetune'
    """
    require_alias(alias)
    with one_at_a_time(config):
        plan = plan_study(config)
        finished = [(t, plan.folder(t).result()) for t in plan.trials if plan.folder(t).done]
        eligible, left_out = eligible_trials(plan, finished, all_methods, size, trial_id)
        trial, result = max(eligible, key=rank)
        accuracy, examples = result["validation"]["accuracy"], result["validation"]["n"]
        how = "Named" if trial_id else "Best by validation"
        sentences = [f"{how}: {trial.title}, {accuracy:.1%} of {examples} examples.", *left_out]
        tracker = StudyTracker(config)
        registry = tracker.registry
        if (holder := registry.champion()) is not None:
            require_same_task(config, f"models:/{registry.name}/{holder.version}")
        run_id = tracker.sync_trial(trial, plan.folder(trial))
        tracker.log_student(trial, plan.folder(trial))
        version = registry.register(run_id, version_tags(config, trial, result, len(eligible)))
        if alias == CHAMPION:
            holder, moved = challenge(plan, registry, trial, accuracy, version, sentences)
        else:
            holder, moved = version, name_version(registry, alias, str(version.version), sentences)
        sentences += [] if trial_id else gold_comparison(finished, trial, result)
        if moved or holder.version != version.version:
            registry.describe(version.version, justification(config, result, sentences))
        return outcome(config, alias, holder, moved, sentences)


@sync_study
def promote_version(config: StudyConfig, number: str, alias: str = CHAMPION) -> Promotion:
    """Moves the alias `champion`, or another one, to a version of the study's registered model, for example back to an earlier one.

    Raises:
        CotdError: there is no such version, its student reads the teacher's rationales, or as of `promote`.
    """
    require_alias(alias)
    with one_at_a_time(config):
        registry = StudyTracker(config).registry
        version = registry.version(number)
        uri = f"models:/{registry.name}/{number}"
        _, card = find_student(uri)
        require_same_task(config, uri, card)
        if card.get("rationale_as_input"):
            raise CotdError(f"{uri} reads the teacher's rationale, and cannot be served. Name another version.")
        sentences: list[str] = []
        moved = name_version(registry, alias, number, sentences)
        return outcome(config, alias, version, moved, sentences)


def one_at_a_time(config: StudyConfig) -> contextlib.AbstractContextManager[None]:
    """Keeps a second promotion of the study away, on all machines that share its storage."""
    return only_one_machine(config, "promote", f"promoting a student of {config.name}", "then promote again.")


def eligible_trials(
    plan: Plan, finished: list[Finished], all_methods: bool, size: str | None, trial_id: str | None
) -> tuple[list[Finished], list[str]]:
    """The finished trials to choose from, and a sentence about methods that are left out. Other args, errors: as of `promote`."""
    config = plan.config
    if size is not None and size not in (sizes := config.grid.all_values("size")):
        raise CotdError(f"--size '{size}' is not in the study's grid ({', '.join(sizes)}).{nearest(size, sizes)}")
    if trial_id is not None:
        named = [(t, r) for t, r in finished if t.id == trial_id]
        if not named:
            raise CotdError(
                f"--trial '{trial_id}' is not a finished trial of study {config.name}. Their ids are in report.json."
            )
        if METHODS[named[0][0].method].rationale_as_input:
            raise CotdError(
                f"--trial '{trial_id}': its student reads the teacher's rationale, and cannot be served. Name another."
            )
        return named, []
    readers = sorted({t.method for t, _ in finished if METHODS[t.method].rationale_as_input})
    left_out = [f"Students of {' and '.join(readers)} read the teacher's rationale, and cannot be promoted."] if readers else []
    eligible = [(t, r) for t, r in finished if t.method not in readers and (all_methods or METHODS[t.method].distilled)]
    if size is not None:
        eligible = [(t, r) for t, r in eligible if t.size == size]
    if not eligible:
        kind = "trial" if all_methods else "distilled trial (distill, cot_*; --all-methods for the others too)"
        of_size = f" of size {size}" if size else ""
        problem = f"study {config.name} has no finished {kind}{of_size} to promote. Run `cotd sweep CONFIG` first."
        others = finished_elsewhere(config, (t.id for t in plan.trials))
        raise CotdError(" ".join([problem, *left_out, *([describe_others(config, others)] if others else [])]))
    return eligible, left_out


def challenge(
    plan: Plan, registry: Registry, trial: Trial, accuracy: float, version: Any, sentences: list[str]
) -> tuple[Any, bool]:
    """Makes a trial's version the champion unless the present one is as good; what happened is added to the sentences.

    Args:
        accuracy: the trial's on all validation examples.

    Returns:
        The version that is the champion then, and whether the alias was moved.
    """
    new = str(version.version)
    while True:
        holder = registry.champion()
        if holder is not None and str(holder.version) == new:
            sentences.append(f"It is the champion already: version {new}.")
            return holder, False
        if holder and (reason := why_champion_stays(plan, trial, accuracy, f"models:/{registry.name}/{holder.version}")):
            sentences.append(
                f"The present champion, version {holder.version}, {reason}: it stays. The new student is version {new}, "
                f"models:/{registry.name}@{CHALLENGER}; `--to {new}` makes it the champion."
            )
            registry.set_alias(CHALLENGER, new)
            return holder, False
        now = registry.champion()
        if (now and now.version) == (holder and holder.version):  # else another study promoted one meanwhile: compare with that
            name_version(registry, CHAMPION, new, sentences)
            return version, True


def name_version(registry: Registry, alias: str, number: str, sentences: list[str]) -> bool:
    """Moves an alias to a version, unless it has it already; what happened is added to the sentences."""
    holder = registry.alias(alias)
    if holder is not None and str(holder.version) == number:
        sentences.append(f"models:/{registry.name}@{alias} is version {number} already.")
        return False
    if alias == CHAMPION:
        registry.promote(number)
    else:
        registry.set_alias(alias, number)
    before = f"; it was version {holder.version}" if holder else ""
    sentences.append(f"models:/{registry.name}@{alias} is now version {number}{before}.")
    return True


def outcome(config: StudyConfig, alias: str, holder: Any, moved: bool, sentences: list[str]) -> Promotion:
    """What was decided; the champion is also written to `champion.json`."""
    described = {
        **{key: holder.tags.get(key) for key in ("method", "size", "study", "validation_accuracy", "test_accuracy")},
        "fraction": float(holder.tags.get("fraction", "nan")), "seed": holder.tags.get("seed"), "mlflow_run_id": holder.run_id,
        "model_uri": f"models:/{config.tracking.registered_model}/{holder.version}", "version": str(holder.version), "moved": moved,
    }  # fmt: skip
    if alias == CHAMPION:
        config.directory.mkdir(parents=True, exist_ok=True)
        write_json(config.directory / "champion.json", described)
    return Promotion(described, moved, sentences)


def version_tags(config: StudyConfig, trial: Trial, result: dict[str, Any], candidates: int) -> dict[str, str]:
    scores = {split: result[split] for split in ("validation", "test")}
    return {
        "trial_id": trial.id, "method": trial.method, "fraction": str(trial.fraction), "size": trial.size,
        "seed": str(trial.seed), "study": config.name, "source": config.data.source_name,
        "chosen_by": "validation_accuracy", "chosen_from": str(candidates),
        **{f"{split}_{k}": f"{m[k]:.4f}" for split, m in scores.items() for k in ("accuracy", "ci_low", "ci_high")},
        **{f"{split}_n": str(m["n"]) for split, m in scores.items()},
    }  # fmt: skip


def justification(config: StudyConfig, result: dict[str, Any], sentences: list[str]) -> str:
    """The Markdown text of a version's page: what was decided, and its metrics with their intervals."""
    where = f"Study `{config.name}` on `{config.data.source_name}`."
    return "\n".join([*(f"{s}\n" for s in sentences), *accuracy_table(result), "", where])


def gold_comparison(finished: list[Finished], chosen: Trial, result: dict[str, Any]) -> list[str]:
    """A sentence where finetuning on gold beat the chosen distilled student on validation."""
    gold = [(t, r) for t, r in finished if not METHODS[t.method].distilled]
    if not gold or not METHODS[chosen.method].distilled:
        return []
    trial, best = max(gold, key=rank)
    if merit(best)[0] <= merit(result)[0]:
        return []
    validation, test = (f"{best[s]['accuracy']:.1%} against {result[s]['accuracy']:.1%}" for s in ("validation", "test"))
    scores = f"{validation} on validation ({test} on test)"
    return [f"Finetuning on gold beat it: {trial.title} has {scores}. --all-methods would choose that one."]


def require_same_task(config: StudyConfig, model_uri: str, card: dict[str, Any] | None = None) -> None:
    """Raises a CotdError unless a registered student has the study's answers: an endpoint's must not change under its clients."""
    task = parse_task((card or find_student(model_uri)[1])["task"])
    if (task.kind, set(task.labels)) != (config.task.kind, set(config.task.labels)):
        described = [f"'{t.name}' ({t.expected()})" for t in (task, config.task)]
        raise CotdError(
            f"{model_uri} is of the task {described[0]}, and study {config.name} of {described[1]}: their champions need names of their "
            f"own. Set tracking.registered_model, for example to cotd-{config.task.name}."
        )


def why_champion_stays(plan: Plan, trial: Trial, accuracy: float, champion: str) -> str | None:
    """Why the present champion is not replaced by a trial's student, or None if it is.

    Both are scored on the study's validation examples that the champion was not trained on.

    Args:
        accuracy: the new student's on all validation examples.
    """
    examples = pd.read_parquet(plan.examples)
    validation = examples[(examples["split"] == "validation") & examples["label"].notna()]
    seen = was_seen(find_student(champion)[0], validation, ("train",))
    if seen is None or not seen.any():
        present = validation_accuracy(plan, champion, validation)
        return f"has {present:.1%} on the same examples" if present >= accuracy else None
    if seen.all():
        return "was trained on all validation examples of this study, on which the two cannot be compared"
    unseen = validation[~seen]
    present, new = (validation_accuracy(plan, s, unseen) for s in (champion, plan.folder(trial).student))
    on = f"the {len(unseen):,} validation examples that it was not trained on"
    return f"has {present:.1%} on {on}, and the new student {new:.1%}" if present >= new else None


def validation_accuracy(plan: Plan, student: str | Path, validation: pd.DataFrame) -> float:
    """A student's accuracy on validation examples of this study."""
    table = predictions_table(Student.load(student), validation)
    return float(score_predictions(table, plan.config.task)["accuracy"])
