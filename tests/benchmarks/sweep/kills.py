"""Kills at random moments of one sweep: `python -m tests.benchmarks.sweep.kills`; about eight minutes.

A sweep of 12 trials of the embedded student is started; ten times, at a random moment, its driver or one of its workers is
ended by `kill -9`, and a killed driver's command is given again. Then it is left alone.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import psutil

from cotd.study.config import StudyConfig
from tests.benchmarks.figures import figure, is_small, scratch_folder, write
from tests.benchmarks.sweep.study import write_study
from tests.processes import command_line, marked_processes


class Results(threading.Thread):
    """Notes every result that is written, also one that replaces another."""

    def __init__(self, trials: Path):
        super().__init__(daemon=True)
        self.trials = trials
        self.written: dict[str, set[int]] = {}
        self.finished = threading.Event()

    def run(self) -> None:
        while not self.finished.wait(0.05):
            for result in self.trials.glob("*/result.json"):
                self.written.setdefault(result.parent.name, set()).add(result.stat().st_mtime_ns)


def workers(environment: dict[str, str]) -> list[psutil.Process]:
    """The processes that trials run in."""
    names = ("ray::ImplicitFunc", "ray::run_trial")
    return [p for p in marked_processes(environment) if command_line(p).startswith(names)]


def scored(trials: Path) -> int:
    """The number of validation scores so far."""
    return sum(len(p.read_text().splitlines()) for p in trials.glob("*/metrics.jsonl"))


def runs_left_running(config: StudyConfig) -> tuple[int, int]:
    """The number of RUNNING runs in MLflow, and of those beyond one per trial."""
    import mlflow

    client = mlflow.MlflowClient(config.tracking_uri(), config.tracking_uri())
    runs = client.search_runs([client.get_experiment_by_name(config.name).experiment_id], max_results=1000)
    ids = [r.data.tags["cotd.trial_id"] for r in runs if r.data.tags["cotd.kind"] == "trial"]
    return sum(r.info.status == "RUNNING" for r in runs), len(ids) - len(set(ids))


def main() -> None:
    small = is_small(__doc__)
    kills, seeds, steps = (2, 1, 12) if small else (10, 4, 24)
    draw = random.Random(0)
    environment = {**os.environ, "COTD_TEST_MARK": uuid.uuid4().hex}
    with scratch_folder() as scratch:
        # Random kills may hit the same trial again and again, which must not count as its failure.
        training, resources = {"steps": steps, "eval_every": 2}, {"max_failures": kills}
        config = write_study(scratch, [0.1, 0.5, 1.0], seeds, training, resources=resources)
        expected = 3 * seeds
        trials = config.directory / "trials"
        command = [sys.executable, "-m", "cotd.cli", "sweep", str(scratch / "study.yaml")]
        results = Results(trials)
        results.start()
        drivers = killed = 0
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while killed < kills and len(list(trials.glob("*/result.json"))) < expected:
                before = scored(trials)
                while process.poll() is None and scored(trials) == before:
                    time.sleep(0.05)  # until it trains: a kill while Ray starts shows little
                time.sleep(draw.uniform(0, 2))
                target = draw.choice(["driver", "worker"])
                alive = workers(environment)
                if process.poll() is None and (target == "driver" or not alive):
                    process.kill()
                    process.wait()
                    killed, drivers = killed + 1, drivers + 1
                elif process.poll() is None:
                    draw.choice(alive).kill()
                    killed += 1
                if process.poll() is not None:
                    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            process.wait()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        finally:
            for left in marked_processes(environment):
                left.kill()
        time.sleep(0.2)
        results.finished.set()
        results.join()
        lost = expected - len(list(trials.glob("*/result.json")))
        doubled = sum(len(times) - 1 for times in results.written.values())
        running, beyond = runs_left_running(config)
        note = f"{drivers} of the driver, {killed - drivers} of workers; a trial has {steps} steps, a checkpoint every 2"
        write(
            "sweep_kills",
            [
                figure("kills", killed, "kills", note=note),
                figure("trials_expected", expected, "trials"),
                figure("trials_lost", lost, "trials"),
                figure("trials_doubled", doubled + beyond, "trials"),
                figure("runs_left_running", running, "runs"),
            ],
            small,
        )


if __name__ == "__main__":
    main()
