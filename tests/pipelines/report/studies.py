"""Studies whose trials were never trained: their folders are laid out as a sweep leaves them, with chosen predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cotd.evaluation.statistics import accuracy_interval
from cotd.study.config import load_config
from cotd.study.trials import plan_trials
from cotd.training.trial import Trial
from pipelines.report.results import Content, Results, read_results
from pipelines.report.run import study_content
from pipelines.sweep.plan import Plan

N = 200
PARAMETERS = {"tiny": 8_000_000, "small": 60_000_000, "base": 220_000_000}

METHODS = ["finetune", "distill", "cot_labelled", "cot_unlabelled"]


class Study:
    """A study of `N` test examples, half of each label, whose trials' right answers a test chooses.

    Attributes:
        accuracy: (method, fraction, size) → share of the test examples that such a student gets right.
        teacher: the share that the teacher gets right, or None for no annotations.
    """

    def __init__(self, config_path: Callable[..., Path], grid: dict[str, Any]):
        self.config = load_config(config_path(grid=grid))
        self.accuracy: Callable[[str, float, str], float] = lambda method, fraction, size: 0.7
        self.teacher: float | None = 0.8
        digests = {size: f"digest of {size}" for size in self.config.grid.size}
        self.trials = plan_trials(self.config, digests, "r", "a")
        shared = self.config.directory / "data"
        shared.mkdir(parents=True)
        self.examples = shared / "examples-r.parquet"
        self.ids = [f"r{i:03}" for i in range(N)]
        self.gold = np.where(np.arange(N) % 2 == 0, "positive", "negative")
        train = pd.DataFrame({"id": [f"t{i}" for i in range(20)], "text": "A film.", "label": ["positive", "negative"] * 10})
        test = pd.DataFrame({"id": self.ids, "text": "A film.", "label": self.gold})
        pd.concat([train.assign(split="train"), train.assign(split="validation"), test.assign(split="test")]).to_parquet(
            self.examples
        )

    def plan(self) -> Plan:
        teacher_test = annotations = None
        if self.teacher is not None:
            teacher_test = self.config.directory / "teacher_test.parquet"
            self.predictions(self.right(self.teacher, 99)).to_parquet(teacher_test)
            annotations = self.config.directory / "data" / "annotations-a.parquet"
            rows = [(f"t{i}", given, 90, 10) for i in range(20) for given in (False, True)]
            columns = ["example_id", "gold_conditioned", "prompt_tokens", "output_tokens"]
            pd.DataFrame(rows, columns=columns).to_parquet(annotations)
        return Plan(self.config, self.trials, self.examples, annotations, teacher_test, {})

    def right(self, share: float, seed: int) -> np.ndarray:
        """Which rows are right: those of the better share hold those of the lesser, but for 3 % that change with the seed."""
        rng = np.random.default_rng(seed)
        difficulty = np.random.default_rng(0).permutation(N) + rng.normal(scale=0.03 * N, size=N)
        return np.argsort(np.argsort(difficulty)) < round(share * N)

    def predictions(self, right: np.ndarray) -> pd.DataFrame:
        wrong = np.where(self.gold == "positive", "negative", "positive")
        table = pd.DataFrame({"example_id": self.ids, "gold": self.gold, "predicted": np.where(right, self.gold, wrong)})
        # Files need not agree on the order of rows: pairs are made by id.
        return table.sample(frac=1, random_state=1)

    def finish(self, trial: Trial) -> None:
        """Leaves what a trained trial leaves."""
        folder = Plan(self.config, self.trials, self.examples, None, None, {}).folder(trial)
        folder.write_trial(trial, self.config.model_dump())
        seed = [trial.seed, round(100 * trial.fraction), *map(ord, trial.method + trial.size)]
        right = self.right(
            self.accuracy(trial.method, trial.fraction, trial.size), int(np.random.default_rng(seed).integers(2**31))
        )
        self.predictions(right).to_parquet(folder.predictions)
        accuracy, low, high = accuracy_interval(right)
        metrics = {
            "accuracy": accuracy, "ci_low": low, "ci_high": high, "n": N, "macro_f1": accuracy, "teacher_agreement": accuracy,
        }  # fmt: skip
        folder.write_result(
            {
                "validation": metrics, "test": metrics, "train_examples": round(20 * trial.fraction), "train_seconds": 10.0,
                "seconds": 12.0, "parameters": PARAMETERS[trial.size], "train_pairs": 20, "best_step": 1,
            }
        )  # fmt: skip

    def finish_all(self) -> Study:
        for trial in self.trials:
            self.finish(trial)
        return self

    def results(self) -> Results:
        return read_results(self.plan(), [])


Make = Callable[..., Study]


def content(made: Study) -> Content:
    """What `report.json` would hold, with a teacher's summary."""
    report = study_content(made.plan(), made.results())
    teacher = {"model": "embedded:teacher", "accuracy": made.teacher, "ci_low": 0.75, "ci_high": 0.85, "n": 200}
    return report | {"teacher": teacher if made.teacher is not None else None}


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table of a Markdown text."""
    blocks: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            blocks[-1].append([cell.strip() for cell in line[1:-1].split("|")])
        elif blocks[-1]:
            blocks.append([])
    return [t for t in blocks if t]
