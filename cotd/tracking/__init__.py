"""MLflow: the only package that talks to it. The driver alone writes, from the trials' folders, idempotently."""

from cotd.tracking.pretraining import PretrainingTracker
from cotd.tracking.registry import CHALLENGER, CHAMPION, Registry, download_student, model_version
from cotd.tracking.store import attempt, friendly_errors, open_store, quiet_mlflow, use_tracking
from cotd.tracking.study import StudyTracker

__all__ = [
    "CHALLENGER", "CHAMPION", "PretrainingTracker", "Registry", "StudyTracker", "attempt", "download_student", "friendly_errors",
    "model_version",
    "open_store", "quiet_mlflow", "use_tracking",
]  # fmt: skip
