"""A pretraining run in MLflow."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotd.tracking.store import attempt, find_experiment, friendly_errors, open_store

if TYPE_CHECKING:
    from cotd.pretraining.config import PretrainConfig


class PretrainingTracker:
    """A pretraining run in MLflow: one run a recipe, gone on with after a stop."""

    def __init__(self, config: PretrainConfig, digest: str):
        storage = config.directory.parent
        uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage / 'mlflow.db'}"
        with friendly_errors(uri):
            self.client = open_store(uri)
            self.experiment_id = find_experiment(self.client, uri, "pretraining", storage)
        found = self.client.search_runs([self.experiment_id], f"tags.`cotd.recipe` = '{digest}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        tags = {"cotd.recipe": digest, "cotd.kind": "pretraining"}
        self.run_id = self.client.create_run(self.experiment_id, tags=tags, run_name=config.name).info.run_id
        self.client.log_dict(self.run_id, config.model_dump(), "config.json")

    def log(self, point: dict[str, float]) -> None:
        """Logs a point's values at its step. A store that does not answer is no reason to stop training."""
        from mlflow.entities import Metric

        step, stamp = int(point["step"]), int(time.time() * 1000)
        values = {k: v for k, v in point.items() if k not in ("step", "seconds")}
        attempt(lambda: self.client.log_batch(self.run_id, metrics=[Metric(k, v, stamp, step) for k, v in values.items()]))

    def finish(self, summary: dict[str, Any], card: Path) -> None:
        """Logs the summary and the model's card."""
        attempt(lambda: self.client.log_dict(self.run_id, summary, "summary.json"))
        attempt(lambda: self.client.log_artifact(self.run_id, str(card)))

    def end(self, status: str) -> None:
        attempt(lambda: self.client.set_terminated(self.run_id, status))
