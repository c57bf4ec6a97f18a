"""A study as it stands: its checked inputs, its trials, and which of them are done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.config.digest import digest
from cotd.data.examples import Examples
from cotd.data.sources import load_examples
from cotd.errors import CotdError
from cotd.students.base_models import model_digest, weights_bytes
from cotd.study.config import StudyConfig
from cotd.study.trials import plan_trials
from cotd.teachers.annotations import annotations_digest
from cotd.training.checks import require_rationales
from cotd.training.folder import TrialFolder
from cotd.training.methods import METHODS
from cotd.training.trial import Trial
from pipelines.annotate.files import AnnotationFiles, read_annotations, read_rationales, write_parquet
from pipelines.annotate.job import annotation_inputs, check_gold


@dataclass(frozen=True)
class Plan:
    """A study's trials, and the data they share.

    Attributes:
        parameters: size → how large its base model is; see `plan_trials`.
    """

    config: StudyConfig
    trials: list[Trial]
    reviews: Path
    annotations: Path | None
    teacher_test: Path | None
    provenance: dict[str, Any]
    held_out_rationales: Path | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        """Where trials keep what they share."""
        return self.reviews.parent

    def cost(self, trial: Trial) -> float:
        return trial.cost(self.parameters.get(trial.size, 1.0))

    def folder(self, trial: Trial) -> TrialFolder:
        return self.folder_of(trial.id)

    def folder_of(self, trial_id: str) -> TrialFolder:
        return TrialFolder(self.config.directory / "trials" / trial_id)

    def pending(self) -> list[Trial]:
        """What is left to train: not done, and, where ASHA may give samples up, not given up either."""
        prunes = self.config.search is not None and self.config.search.asha is not None
        folders = {t.id: self.folder(t) for t in self.trials}
        return [t for t in self.trials if not folders[t.id].done and not (prunes and folders[t.id].pruned)]


def plan_study(config: StudyConfig) -> Plan:
    """Checks all that a sweep needs, and writes the data that its trials share.

    Raises:
        CotdError: bad reviews, missing gold labels, missing annotations, a base model that does not exist.
    """
    reviews = load_examples(config.data)
    check_gold(config, reviews)
    found = check_annotations(config, reviews)
    digests = {size: model_digest(config.sizes[size]) for size in config.grid.all_values("size")}
    annotations_id = annotations_digest(found[0]) if found else None
    rationales = check_rationales(config, reviews) if found else None
    rationales_id = digest(rationales) if rationales is not None else None
    settings = search_settings(config)
    parameters = {size: weight for size in digests if (weight := weights_bytes(config.sizes[size]))}
    trials = plan_trials(config, digests, reviews.digest(), annotations_id, rationales_id, settings, parameters)
    shared = config.directory / "data" / f"reviews-{reviews.digest()}.parquet"
    if not shared.is_file():
        shared.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(reviews.table, shared)
    provenance: dict[str, Any] = {"data": {"source": config.data.source, "digest": reviews.digest(), "rows": reviews.counts}}
    if found:
        provenance["teacher"] = {k: found[1]["teacher"][k] for k in ("model", "strategy", "accuracy", "n")}
    annotations, teacher_test, held_out = None, None, None
    if found:
        # A copy by content: annotating again while trials run must not change what they are trained on.
        annotations = shared.with_name(f"annotations-{annotations_id}.parquet")
        if not annotations.is_file():
            write_parquet(found[0], annotations)
        teacher_test = AnnotationFiles.of(config).teacher_test
    if rationales is not None:
        held_out = shared.with_name(f"held-out-rationales-{rationales_id}.parquet")
        if not held_out.is_file():
            write_parquet(pd.DataFrame(rationales.items(), columns=["review_id", "rationale"]), held_out)
    return Plan(config, trials, shared, annotations, teacher_test, provenance, held_out, parameters)


def search_settings(config: StudyConfig) -> list[dict[str, Any]]:
    """The training settings of each sample of the study's search; of a study without one, none beside its own."""
    if config.search is None:
        return [{}]
    from pipelines.sweep.search import draw_settings  # imports Ray

    return draw_settings(config.search)


def check_rationales(config: StudyConfig, reviews: Examples) -> dict[str, str] | None:
    """The teacher's rationales of validation and test reviews, or None where there are none.

    Raises:
        CotdError: a method of the study reads them, and some are missing.
    """
    path = AnnotationFiles.of(config).held_out_rationales
    rationales = read_rationales(path if path.is_file() else None)
    labelled = reviews.table[reviews.table["label"].notna()]
    for method in config.grid.all_values("method"):
        if METHODS[method].rationale_as_input:
            require_rationales(method, {s: labelled[labelled["split"] == s] for s in ("validation", "test")}, rationales)
    return rationales


def made_so(summary: dict[str, Any], config: StudyConfig, reviews: Examples) -> bool:
    """Whether annotations are what the study asks for; how reviews are cut decides nothing where none was."""
    wanted = {config.teacher.truncation} if summary.get("reviews", {}).get("cut", 1) else {"head", "head_tail"}
    teachers = (config.teacher.model_copy(update={"truncation": truncation}) for truncation in sorted(wanted))
    studies = (config.model_copy(update={"teacher": teacher}) for teacher in teachers)
    return any(summary.get("inputs") == annotation_inputs(study, reviews) for study in studies)


def check_annotations(config: StudyConfig, reviews: Examples) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """The study's annotations, or None where no method needs any.

    Raises:
        CotdError: they are needed and missing, are of other reviews, or lack the gold-conditioned ones.
    """
    needing = [m for m in config.grid.all_values("method") if METHODS[m].needs_annotations]
    found = read_annotations(config)
    if not needing:
        return found if found and made_so(found[1], config, reviews) else None
    if found is None:
        raise CotdError(
            f"{', '.join(needing)} need annotations, and {config.name} has none yet. Run `cotd annotate CONFIG` first."
        )
    if not made_so(found[1], config, reviews):
        raise CotdError(
            f"{config.name}'s annotations were made for other reviews, another teacher, other prompts or other settings. "
            "Run `cotd annotate CONFIG` again; what is known is not asked again."
        )
    given_gold = [m for m in needing if METHODS[m].rationale == "given_gold"]
    if given_gold and not found[0]["gold_conditioned"].any():
        column = "name their column in teacher.answers.columns.gold_rationale, " if config.teacher.answers else ""
        raise CotdError(
            f"{', '.join(given_gold)} needs rationales given the gold label, and these annotations have none. "
            f"Set teacher.gold_conditioned: true, {column}and run `cotd annotate CONFIG` again."
        )
    return found
