"""What a trial was trained and scored on, as MLflow's dataset inputs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.config.digest import digest
from cotd.data.examples import select_fraction
from cotd.study.config import StudyConfig
from cotd.training.methods import METHODS
from cotd.training.trial import Trial
from cotd.utils.text import format_percent

CONTEXT = "mlflow.data.context"  # the tag in which MLflow's pages look for what a dataset was used for


class StudyDatasets:
    """The datasets of a study's trials, read from the files that its trials share, each once."""

    def __init__(self, config: StudyConfig):
        self.config = config
        self.shared = config.directory / "data"
        self._known: dict[tuple[str, ...], Any] = {}

    def inputs(self, trial: Trial) -> list[Any]:
        """MLflow's DatasetInputs of a trial: its part of the training split, validation, test, and annotations.

        Each has its source (a Parquet file that `mlflow.data.get_source(…).load()` finds), schema, and a profile with rows,
        labels and, for annotations, the teacher. Equal digests are equal content.
        """
        from mlflow.entities import DatasetInput, InputTag

        reviews = self.shared / f"reviews-{trial.reviews_digest}.parquet"
        found = [(context, self._reviews(reviews, trial, context)) for context in ("train", "validation", "test")]
        if METHODS[trial.method].needs_annotations:
            annotations, rationales = self._annotation_files(trial.annotations_digest)
            found += [("annotations", self._annotations(annotations))] if annotations else []
            found += [("rationales", self._rationales(rationales))] if rationales else []
        return [DatasetInput(dataset, [InputTag(CONTEXT, context)]) for context, dataset in found if dataset is not None]

    def test_dataset(self, trial: Trial) -> Any:
        """The test split's dataset, which a trial's test metrics are of; None where its file is gone."""
        return self._reviews(self.shared / f"reviews-{trial.reviews_digest}.parquet", trial, "test")

    def _reviews(self, file: Path, trial: Trial, split: str) -> Any:
        part = format_percent(trial.fraction) if split == "train" else ""
        key = (file.name, split, part)
        if key not in self._known:
            table = read_parquet(file)
            if table is None:
                return None
            rows = table[table["split"] == split]
            rows = select_fraction(rows, trial.fraction) if part else rows[rows["label"].notna()]
            name = " · ".join(filter(None, [self.config.data.source_name, split, part]))
            labels = {str(k): int(v) for k, v in rows["label"].value_counts().items()}
            profile = {"rows": len(rows), "labels": labels, "source": self.config.data.source_name}
            content = digest([trial.reviews_digest, split, part])
            self._known[key] = dataset(rows, self._source(file), name, content, profile, "label")
        return self._known[key]

    def _annotations(self, file: Path) -> Any:
        key = (file.name,)
        if key not in self._known:
            table = read_parquet(file)
            if table is None:
                return None
            teachers = sorted(map(str, table["teacher"].dropna().unique()))
            profile = {
                "rows": len(table), "usable": int(table["error"].isna().sum()), "reviews": int(table["review_id"].nunique()),
                **{k: sorted(map(str, table[k].dropna().unique())) for k in ("teacher", "revision", "prompt_hash")},
                "strategy": self.config.teacher.strategy, "source": self.config.data.source_name,
            }  # fmt: skip
            name = f"annotations of {self.config.data.source_name} by {', '.join(teachers)}"
            self._known[key] = dataset(table, self._source(file), name, digest_in(file), profile, "label")
        return self._known[key]

    def _rationales(self, file: Path) -> Any:
        key = (file.name,)
        if key not in self._known:
            table = read_parquet(file)
            name = f"rationales of {self.config.data.source_name}, validation and test, by {self.config.teacher.model}"
            if table is None:
                return None
            self._known[key] = dataset(table, self._source(file), name, digest_in(file), {"rows": len(table)})
        return self._known[key]

    def _source(self, file: Path) -> str:
        """Where others find a file of the study's."""
        return f"{self.config.remote}/data/{file.name}" if self.config.remote else str(file)

    def _annotation_files(self, wanted: str | None) -> tuple[Path | None, Path | None]:
        """The annotations, and the rationales read beside reviews, whose digest a trial's identity names."""
        for answers in sorted(self.shared.glob("annotations-*.parquet")):
            if digest_in(answers) == wanted:
                return answers, None
            for rationales in self.shared.glob("held-out-rationales-*.parquet"):
                if digest([digest_in(answers), digest_in(rationales)]) == wanted:
                    return answers, rationales
        return None, None


def dataset(
    rows: pd.DataFrame, source: str, name: str, content: str, profile: dict[str, Any], target: str | None = None
) -> Any:
    """An MLflow Dataset of rows that are in a file, whole or in part."""
    import mlflow
    from mlflow.entities import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a hint that integer columns cannot have missing values
        made = mlflow.data.from_pandas(rows, source=source, name=name[:500], digest=content, targets=target).to_dict()
    return Dataset(made["name"], made["digest"], made["source_type"], made["source"], made["schema"], json.dumps(profile))


def digest_in(file: Path) -> str:
    """The content digest that ends a shared file's name."""
    return file.stem.rsplit("-", 1)[1]


def read_parquet(file: Path) -> pd.DataFrame | None:
    return pd.read_parquet(file) if file.is_file() else None
