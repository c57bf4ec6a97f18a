"""A study as it is now: its checked inputs, its trials, and which of them are done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.config.digest import digest
from cotd.errors import CotdError
from cotd.evaluation.seen import seen_problems
from cotd.students.base_models import model_digest, weights_bytes
from cotd.study.config import StudyConfig
from cotd.study.stages import teacher_folder
from cotd.study.students import student_kinds
from cotd.study.trials import plan_trials
from cotd.teachers.annotations import annotations_digest
from cotd.training.checks import require_rationales
from cotd.training.folder import TrialFolder
from cotd.training.methods import METHODS
from cotd.training.trial import Trial
from cotd.utils.parquet import write_parquet
from pipelines.annotate.files import AnnotationFiles, read_annotations, read_rationales
from pipelines.annotate.job import annotation_inputs
from pipelines.prepare import prepare_here
from pipelines.sweep.search import draw_settings
from pipelines.sweep.settled import settle


@dataclass(frozen=True)
class Plan:
    """A study's trials, and the files they share.

    Attributes:
        provenance: what each trial's result says of its data and teacher.
        parameters: size → how large its base model is; see `plan_trials`.
    """

    config: StudyConfig
    trials: list[Trial]
    examples: Path
    annotations: Path | None
    teacher_test: Path | None
    provenance: dict[str, Any]
    held_out_rationales: Path | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        """The folder of what trials compute once for all of them."""
        return self.examples.parent

    def cost(self, trial: Trial) -> float:
        return trial.cost(self.parameters.get(trial.size, 1.0))

    def folder(self, trial: Trial) -> TrialFolder:
        return self.folder_of(trial.id)

    def folder_of(self, trial_id: str) -> TrialFolder:
        return TrialFolder(self.config.directory / "trials" / trial_id)

    def pending(self) -> list[Trial]:
        """Trials left to train: not done, nor pruned where the study's search prunes."""
        prunes = self.config.search is not None and self.config.search.asha is not None
        folders = {t.id: self.folder(t) for t in self.trials}
        return [t for t in self.trials if not folders[t.id].done and not (prunes and folders[t.id].pruned)]

    def without(self, trials: list[Trial]) -> list[Trial]:
        """All trials but these."""
        left_out = {t.id for t in trials}
        return [t for t in self.trials if t.id not in left_out]


def plan_study(config: StudyConfig) -> Plan:
    """Checks all that a sweep needs, and writes the data that its trials share.

    Raises:
        CotdError: bad examples, missing gold labels, missing annotations, a base model that does not exist, or one that has
            seen the study's test examples.
    """
    examples = prepare_here(config)
    annotated = check_annotations(config, examples.digest)
    sizes = {size: config.sizes[size] for size in config.grid.all_values("size")}
    kinds = student_kinds(config)
    models = {f"sizes.{size}": model for size, model in sizes.items()}
    if annotated and (teacher := teacher_folder(config)):
        models["teacher.model"] = str(teacher)
    if problems := seen_problems(models, pd.read_parquet(examples.path, columns=["id", "split"])):
        raise CotdError(*problems)
    base_digests = {size: model_digest(model) for size, model in sizes.items()}
    parameters = {size: weight for size, model in sizes.items() if (weight := weights_bytes(model))}
    provenance: dict[str, Any] = {
        "study": config.name,
        "data": config.data.model_dump() | {"digest": examples.digest, "rows": examples.counts},
    }
    annotations, annotations_id, teacher_test = None, None, None
    rationales_file, rationales_id = None, None
    if annotated:
        table, summary = annotated
        shown = (
            "model", "strategy", "accuracy", "ci_low", "ci_high", "n", "parameters", "weights_bytes", "cost_of_a_million", "student",
        )  # fmt: skip
        provenance["teacher"] = {k: summary["teacher"][k] for k in shown if k in summary["teacher"]}
        annotations_id = annotations_digest(table)
        if annotations_id != summary["digest"]:
            raise CotdError(
                f"{config.name}'s annotations and their summary are of different runs. Run `cotd annotate CONFIG` again; what is "
                "known is not asked again."
            )
        # A copy by content: annotating again while trials run must not change what they are trained on.
        annotations = write_once(examples.path.with_name(f"annotations-{annotations_id}.parquet"), table)
        teacher_test = AnnotationFiles.of(config).teacher_test
        if (rationales := check_rationales(config, examples.path)) is not None:
            rationales_id = digest(rationales)
            rationales_file = write_once(
                examples.path.with_name(f"held-out-rationales-{rationales_id}.parquet"),
                pd.DataFrame(rationales.items(), columns=["example_id", "rationale"]),
            )
    settings = draw_settings(config.search) if config.search else [{}]
    digests = base_digests, examples.digest, annotations_id, rationales_id
    trials = plan_trials(config, *digests, settings, parameters, *settle(config, kinds))
    return Plan(config, trials, examples.path, annotations, teacher_test, provenance, rationales_file, parameters)


def write_once(path: Path, table: pd.DataFrame) -> Path:
    """The path of a file named after its content, written unless it is there."""
    if not path.is_file():
        write_parquet(table, path)
    return path


def check_rationales(config: StudyConfig, examples: Path) -> dict[str, str] | None:
    """The teacher's rationales of validation and test examples by id, or None where there are none.

    Raises:
        CotdError: a method of the study reads them, and some are missing.
    """
    path = AnnotationFiles.of(config).held_out_rationales
    rationales = read_rationales(path if path.is_file() else None)
    if needing := [m for m in config.grid.all_values("method") if METHODS[m].rationale_as_input]:
        labelled = pd.read_parquet(examples, columns=["id", "label", "split"]).dropna(subset="label")
        held_out = {split: labelled[labelled["split"] == split] for split in ("validation", "test")}
        for method in needing:
            require_rationales(method, held_out, rationales)
    return rationales


def check_annotations(config: StudyConfig, examples_digest: str) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """The study's annotations and their summary, or None where no method needs any and those there are of something else.

    Raises:
        CotdError: they are needed and missing, were made from other inputs, or lack rationales given the gold label.
    """
    needing = [m for m in config.grid.all_values("method") if METHODS[m].needs_annotations]
    annotated = read_annotations(config)
    current = annotated is not None and annotated[1].get("inputs") == annotation_inputs(config, examples_digest)
    if not needing:
        return annotated if current else None
    if annotated is None:
        raise CotdError(f"{config.name} has no annotations, which {', '.join(needing)} need. Run `cotd annotate CONFIG` first.")
    if not current:
        raise CotdError(
            f"{config.name}'s annotations were made for other examples, another teacher, other prompts or other settings. "
            "Run `cotd annotate CONFIG` again; what is known is not asked again."
        )
    given_gold = [m for m in needing if METHODS[m].rationale == "given_gold"]
    if given_gold and not annotated[0]["gold_conditioned"].any():
        column = "name their column in teacher.imported.columns.gold_rationale, " if config.teacher.imported else ""
        raise CotdError(
            f"{', '.join(given_gold)} needs rationales given the gold label, and these annotations have none. "
            f"Set teacher.gold_conditioned: true, {column}and run `cotd annotate CONFIG` again."
        )
    return annotated
