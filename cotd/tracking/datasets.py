"""What a trial was trained and scored on, as MLflow's dataset inputs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.config.digest import digest
from cotd.data.examples import select_fraction
from cotd.study.config import StudyConfig
from cotd.teachers.annotations import labels_digest
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

        datasets = {split: self._split(trial, split) for split in ("train", "validation", "test")}
        if METHODS[trial.method].needs_annotations:
            annotations, rationales = self._annotation_files(trial.annotations_digest)
            datasets["annotations"] = self._whole(annotations, self._describe_annotations)
            datasets["rationales"] = self._whole(rationales, self._describe_rationales)
        return [DatasetInput(data, [InputTag(CONTEXT, context)]) for context, data in datasets.items() if data is not None]

    def test_dataset(self, trial: Trial) -> Any:
        """The test split's dataset, which a trial's test metrics are of; None if its file is gone."""
        return self._split(trial, "test")

    def _split(self, trial: Trial, split: str) -> Any:
        file = self.shared / f"examples-{trial.examples_digest}.parquet"
        part = format_percent(trial.fraction) if split == "train" else ""
        key = (file.name, split, part)
        if key not in self._known and file.is_file():
            table = pd.read_parquet(file)
            rows = table[table["split"] == split]
            rows = select_fraction(rows, trial.fraction) if part else rows[rows["label"].notna()]
            source = self.config.data.source_name
            labels = {str(k): int(v) for k, v in rows["label"].value_counts().items()}
            profile = {"rows": len(rows), "labels": labels, "source": source}
            name = " · ".join(filter(None, [source, split, part]))
            self._known[key] = self._dataset(rows, file, name, digest([trial.examples_digest, split, part]), profile)
        return self._known.get(key)

    def _whole(self, file: Path | None, describe: Callable[[pd.DataFrame], tuple[str, dict[str, Any]]]) -> Any:
        """The dataset of a whole file; `describe` gives its name and profile."""
        if file is None:
            return None
        if (file.name,) not in self._known:
            table = pd.read_parquet(file)
            name, profile = describe(table)
            self._known[(file.name,)] = self._dataset(table, file, name, digest_in(file), {"rows": len(table), **profile})
        return self._known[(file.name,)]

    def _describe_annotations(self, table: pd.DataFrame) -> tuple[str, dict[str, Any]]:
        names = {k: sorted(map(str, table[k].dropna().unique())) for k in ("teacher", "revision", "prompt_hash")}
        return f"annotations of {self.config.data.source_name} by {', '.join(names['teacher'])}", {
            "usable": int(table["error"].isna().sum()), "examples": int(table["example_id"].nunique()), **names,
            "strategy": self.config.teacher.strategy, "source": self.config.data.source_name,
        }  # fmt: skip

    def _describe_rationales(self, table: pd.DataFrame) -> tuple[str, dict[str, Any]]:
        return f"rationales of {self.config.data.source_name}, validation and test, by {self.config.teacher.model}", {}

    def _annotation_files(self, identity: str | None) -> tuple[Path | None, Path | None]:
        """The annotations, and the rationales read beside examples, whose digest a trial's identity names."""
        for file in sorted(self.shared.glob("annotations-*.parquet")):
            if identity in (digest_in(file), labels_digest(digest_in(file))):
                return file, None
            for rationales in self.shared.glob("held-out-rationales-*.parquet"):
                if digest([digest_in(file), digest_in(rationales)]) == identity:
                    return file, rationales
        return None, None

    def _dataset(self, rows: pd.DataFrame, file: Path, name: str, content: str, profile: dict[str, Any]) -> Any:
        """An MLflow Dataset of rows that are in a file of the study's, whole or in part; `content` is their digest."""
        import mlflow
        from mlflow.entities import Dataset

        source = f"{self.config.remote}/data/{file.name}" if self.config.remote else str(file)  # where others find the file
        target = "label" if "label" in rows else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a hint that integer columns cannot have missing values
            made = mlflow.data.from_pandas(rows, source=source, name=name[:500], digest=content, targets=target).to_dict()
        return Dataset(made["name"], made["digest"], made["source_type"], made["source"], made["schema"], json.dumps(profile))


def digest_in(file: Path) -> str:
    """The content digest that ends a shared file's name."""
    return file.stem.rsplit("-", 1)[1]
