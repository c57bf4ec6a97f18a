"""The folder of one pretraining run.

corpus/          the prepared corpus and the tokenizer
initial/         the model before the first step
checkpoints/     the newest one; training goes on from it exactly
metrics.jsonl    a line for each logged step
model/           the finished T5, in Hugging Face layout, with its card
summary.json     what was trained and how; done is what has the card, too, which is written last
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from cotd.errors import CotdError


class RunFolder:
    """The files of one pretraining run; see the module's docstring."""

    def __init__(self, path: Path):
        self.path = path
        self.corpus = path / "corpus"
        self.initial = path / "initial"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.model = path / "model"
        self.summary = path / "summary.json"
        self._recipe = path / "recipe.json"

    def claim(self, wanted: str, restart: bool) -> None:
        """Makes the folder this recipe's.

        Raises:
            CotdError: it holds the first model, a checkpoint or the result of another recipe.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        held = json.loads(self._recipe.read_text())["digest"] if self._recipe.is_file() else wanted
        if held != wanted:
            if not restart:
                raise CotdError(
                    f"{self.path} holds a run of another recipe. Give this one another `name`, or start over with --restart."
                )
            for done in (self.initial, self.checkpoints, self.model):
                shutil.rmtree(done, ignore_errors=True)
            for done in (self.metrics, self.summary):
                done.unlink(missing_ok=True)
        self._recipe.write_text(json.dumps({"digest": wanted}))

    def read_summary(self) -> dict[str, Any]:
        return json.loads(self.summary.read_text(encoding="utf-8"))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes it whole or not at all."""
        scratch = self.summary.with_suffix(".part")
        scratch.write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
        scratch.replace(self.summary)

    def append(self, point: dict[str, float]) -> None:
        """Adds a line to what has been logged, beginning one anew where the last was cut off."""
        with self.metrics.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(point).encode() + b"\n")

    def lines(self) -> list[dict[str, float]]:
        """What has been logged, in the order of writing; a line that a kill or a full disk cut off is passed over."""
        found = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def points(self) -> list[dict[str, float]]:
        """The logged points, in order; a step logged twice, because a stop lay between, counts once."""
        by_step: dict[int, dict[str, float]] = {}
        for point in self.lines():
            by_step[int(point["step"])] = by_step.get(int(point["step"]), {}) | point
        return [by_step[step] for step in sorted(by_step)]
