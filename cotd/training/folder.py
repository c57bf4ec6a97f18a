"""The files of one trial."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from cotd.training.trial import Trial
from cotd.utils.files import write_json


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
        return json.loads(self._result.read_text(encoding="utf-8"))

    def period(self) -> tuple[int | None, int | None]:
        """When the attempt that finished began and ended, in milliseconds since 1970; None and None where none has."""
        if not self.done:
            return None, None
        ended = self._result.stat().st_mtime
        return int((ended - self.result().get("seconds", 0)) * 1000), int(ended * 1000)

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(self._result, result)

    def trial(self) -> Trial:
        return Trial.from_dict(json.loads(self._trial.read_text(encoding="utf-8"))["trial"])

    def config(self) -> dict[str, Any]:
        return json.loads(self._trial.read_text(encoding="utf-8"))["config"]

    def write_trial(self, trial: Trial, config: dict[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._pruned.unlink(missing_ok=True)  # it is to be trained, after all where a search had given it up
        write_json(self._trial, {"trial": trial.to_dict(), "config": config})

    def add_point(self, point: dict[str, float]) -> None:
        """Appends a validation score and its time, on a line of its own whatever a killed attempt left."""
        whole = not self.metrics.is_file() or self.metrics.read_bytes()[-1:] in (b"", b"\n")
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + json.dumps({**point, "time": round(time.time(), 3)}) + "\n")

    def curve(self) -> list[dict[str, float]]:
        """The validation scores so far, in the order of their steps; a line cut off by a kill is left out."""
        if not self.metrics.is_file():
            return []
        by_step: dict[int, dict[str, float]] = {}
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                point = json.loads(line)
            except json.JSONDecodeError:
                continue
            by_step[int(point["step"])] = point
        return [by_step[s] for s in sorted(by_step)]


def merit(result: dict[str, Any]) -> tuple[float, float]:
    return result["validation"]["accuracy"], result["validation"].get("roc_auc", 0.0)
