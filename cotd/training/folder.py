"""The files of one trial: what they are called, and how they are written and read."""

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
        self.predictions = path / "predictions.parquet"  # of the test examples
        self.validation = path / "validation.parquet"  # the same of the validation examples
        self.rationales = path / "rationales.parquet"  # what the student wrote of the first test examples
        self.error = path / "error.txt"
        self._result = path / "result.json"
        self._pruned = path / "pruned.json"
        self._trial = path / "trial.json"

    def of_stage(self, number: int) -> TrialFolder:
        """The same files, with checkpoints of their own for a stage of the training."""
        stage = TrialFolder(self.path)
        stage.checkpoints = self.checkpoints / f"stage-{number}"
        return stage

    @property
    def done(self) -> bool:
        """Whether the trial is finished."""
        return self._result.is_file()

    @property
    def pruned(self) -> bool:
        """Whether a search has given this sample up, so that it is not trained further."""
        return self._pruned.is_file() and not self.done

    def write_trial(self, trial: Trial, config: dict[str, Any]) -> None:
        """Writes what is to be trained, and by which study; a trial that a search gave up is to be trained again."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._pruned.unlink(missing_ok=True)
        write_json(self._trial, {"trial": trial.to_dict(), "config": config})

    def trial(self) -> Trial:
        """The trial that `write_trial` wrote."""
        return Trial.from_dict(read_json(self._trial)["trial"])

    def config(self) -> dict[str, Any]:
        """The study's configuration that `write_trial` wrote."""
        return read_json(self._trial)["config"]

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes the result, which makes the trial a finished one."""
        write_json(self._result, result)

    def result(self) -> dict[str, Any]:
        """The result of a finished trial."""
        return read_json(self._result)

    def write_pruned(self, point: dict[str, float]) -> None:
        """Marks the sample as given up after the score `point`, and removes its checkpoints."""
        write_json(self._pruned, point)
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def period(self) -> tuple[int | None, int | None]:
        """The (start, end) of the attempt that finished, in milliseconds since 1970; None and None if none has."""
        if not self.done:
            return None, None
        end = self._result.stat().st_mtime
        return int((end - self.result().get("seconds", 0)) * 1000), int(end * 1000)

    def add_point(self, point: dict[str, float]) -> None:
        """Appends a validation score and the time."""
        append_row(self.metrics, {**point, "time": round(time.time(), 3)})

    def curve(self) -> list[dict[str, float]]:
        """The validation scores so far, the newest of each step, in the order of steps."""
        by_step = {int(point["step"]): point for point in read_rows(self.metrics)}
        return [by_step[step] for step in sorted(by_step)]

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.checkpoints / f"checkpoint-{step}"

    def complete_checkpoints(self) -> list[int]:
        """The steps of an interrupted attempt's checkpoints. The Trainer writes the state last: if it can be read, all is there."""
        return sorted(int(p.name.rpartition("-")[2]) for p in self.checkpoints.glob("checkpoint-*") if read_state(p))

    def resumable(self, step: int) -> Path:
        """A complete checkpoint, ready to continue from.

        Its state names the best checkpoint by an absolute path, perhaps another machine's; the path is corrected here, as
        the Trainer forgets a best checkpoint that it does not find.
        """
        checkpoint = self.checkpoint(step)
        state = read_state(checkpoint)
        best = state.get("best_model_checkpoint")
        if best and best != (here := str(checkpoint.parent / Path(best).name)):
            write_json(checkpoint / "trainer_state.json", {**state, "best_model_checkpoint": here})
        return checkpoint


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The Trainer's state in a checkpoint; empty if a kill or a full disk cut it off."""
    try:
        return read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        return {}


def merit(result: dict[str, Any]) -> tuple[float, float]:
    """What trials are ranked by: validation accuracy, then ROC-AUC."""
    return result["validation"]["accuracy"], result["validation"].get("roc_auc", 0.0)


def rank(entry: tuple[Trial, dict[str, Any]]) -> tuple[Any, ...]:
    """Equal accuracies are common on a few hundred rows: the better ROC-AUC, then the least training data, decides."""
    trial, result = entry
    return *merit(result), -trial.fraction, trial.id


def describe_result(result: dict[str, Any]) -> str:
    """A trial's accuracy and seconds in a line, with what of its targets was cut."""
    test = result["test"]
    cut = f", {result['cut_targets']:,} of {result['train_pairs']:,} targets cut (training.max_target_tokens)"
    return (
        f"test accuracy {test['accuracy']:.1%} [{test['ci_low']:.1%}, {test['ci_high']:.1%}], "
        f"validation {result['validation']['accuracy']:.1%}, {result['seconds']:.0f} s{cut if result['cut_targets'] else ''}"
    )
