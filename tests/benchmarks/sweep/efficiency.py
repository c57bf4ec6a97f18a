"""A sweep against a for-loop: `python -m tests.benchmarks.sweep.efficiency`; about ten minutes.

The same 16 configurations of the embedded student, 30 to 60 seconds each in the sweep, are trained by `cotd sweep` and, in a
process of their own, one after another with all cores. Start-up is what passes before the first trial begins: Ray, its
workers and their imports there, the imports here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from cotd.study.config import load_config
from cotd.training.train import train_trial
from pipelines.sweep.plan import plan_study
from tests.benchmarks.figures import command, figure, is_small, scratch_folder, write
from tests.benchmarks.sweep.study import write_study

FRACTIONS = [0.1, 0.25, 0.5, 1.0]


def loop(path: str) -> None:
    """Trains the study's trials one after another in this process."""
    plan = plan_study(load_config(path))
    examples = pd.read_parquet(plan.examples)
    for trial in plan.trials:
        plan.folder(trial).write_trial(trial, plan.config.model_dump())
        train_trial(trial, plan.folder(trial), examples, None)


def timed(folder: Path, seeds: int, steps: int, training: list[str]) -> tuple[float, float, list[float]]:
    """Seconds of a command that trains all of a fresh study, of its start-up, and of each trial."""
    config = write_study(folder, FRACTIONS, seeds, {"steps": steps, "eval_every": max(1, steps // 3)})
    started = time.time()
    subprocess.run(training, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.time() - started
    results = list((config.directory / "trials").glob("*/result.json"))
    assert len(results) == len(FRACTIONS) * seeds, "a trial has failed"
    each = [json.loads(p.read_text())["seconds"] for p in results]
    begun = min(p.stat().st_mtime - s for p, s in zip(results, each, strict=True))
    return seconds, begun - started, each


def main() -> None:
    small = is_small(__doc__)
    seeds, steps = (1, 6) if small else (4, 90)
    with scratch_folder() as scratch:
        sweep = [sys.executable, "-m", "cotd.cli", "sweep", str(scratch / "sweep" / "study.yaml")]
        wall, start, each = timed(scratch / "sweep", seeds, steps, sweep)
        in_loop = command("sweep.efficiency", "loop", path=scratch / "loop" / "study.yaml")
        loop_wall, loop_start, loop_each = timed(scratch / "loop", seeds, steps, in_loop)
    note = f"{len(each)} trials of {min(each):.0f} to {max(each):.0f} s, {min(loop_each):.0f} to {max(loop_each):.0f} s in the loop"
    write(
        "sweep_efficiency",
        [
            figure("wall_seconds", wall, "s", ("for-loop with all cores", loop_wall), note=note),
            figure("wall_seconds_after_start", wall - start, "s", ("for-loop with all cores", loop_wall - loop_start)),
            figure("start_up_seconds", start, "s", ("for-loop with all cores", loop_start)),
        ],
        small,
    )


if __name__ == "__main__":
    main()
