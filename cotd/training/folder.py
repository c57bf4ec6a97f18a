"""The files of one trial."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from cotd.training.trial import Trial
from cotd.utils.files import read_json, write_json
from cotd.utils.jsonl import append_row, read_rows


class TrialFolder:
    """The files of one trial."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.system_metrics = path / "system_metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.student = path / "student"
        self.predictions = path / "predictions.parquet"
        self.error = path / "error.txt"
        self._result = path / "result.json"
        self._pruned = path / "pruned.json"
        self._trial = path / "trial.json"

    @property
    def done(self) -> bool:
        return self._result.is_file()

    @property
    def pruned(self) -> bool:
        """Whether a search has given this sample up, so that it is not trained on."""
        return self._pruned.is_file() and not self.done

    def write_pruned(self, point: dict[str, float]) -> None:
        """Marks the sample as given up after the score `point`, and removes what only going on would need."""
        write_json(self._pruned, point)
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def result(self) -> dict[str, Any]:
        return read_json(self._result)

    def period(self) -> tuple[int | None, int | None]:
        """When the attempt that finished began and ended, in milliseconds since 1970; None and None where none has."""
        if not self.done:
            return None, None
        ended = self._result.stat().st_mtime
        return int((ended - self.result().get("seconds", 0)) * 1000), int(ended * 1000)

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(self._result, result)

    def trial(self) -> Trial:
        return Trial.from_dict(read_json(self._trial)["trial"])

    def config(self) -> dict[str, Any]:
        return read_json(self._trial)["config"]

    def write_trial(self, trial: Trial, config: dict[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._pruned.unlink(missing_ok=True)  # it is to be trained, after all where a search had given it up
        write_json(self._trial, {"trial": trial.to_dict(), "config": config})

    def add_point(self, point: dict[str, float]) -> None:
        """Appends a validation score and its time."""
        append_row(self.metrics, {**point, "time": round(time.time(), 3)})

    def curve(self) -> list[dict[str, float]]:
        """The validation scores so far, in the order of their steps."""
        by_step = {int(point["step"]): point for point in read_rows(self.metrics)}
        return [by_step[s] for s in sorted(by_step)]


def merit(result: dict[str, Any]) -> tuple[float, float]:
    return result["validation"]["accuracy"], result["validation"].get("roc_auc", 0.0)
