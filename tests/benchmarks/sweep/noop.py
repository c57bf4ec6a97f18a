"""What the driver does for a trial: `python -m tests.benchmarks.sweep.noop`; an hour, or less with --trials 300.

Trials that train nothing: each leaves a curve of three scores, predictions, a student and a result in its folder, as a real one
does, and is logged to an SQLite MLflow, the best with their students. Ray is up before the clock starts. Each number of trials has
a driver of its own.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import call, figure, parse, peak_megabytes, scratch_folder, write
from tests.benchmarks.sweep.study import write_study

STUDENT = "COTD_BENCH_STUDENT"  # the variable that names the folder of every trial's student


def noop_trial(params: dict[str, Any]) -> None:
    """In the place of `pipelines.sweep.trial.run_trial`: all that a trial leaves, without training."""
    import pandas as pd
    from ray import tune

    from cotd.training.folder import TrialFolder

    folder = TrialFolder(Path(params["folder"]))
    best = random.Random(folder.path.name).random()
    for step in (1, 2, 3):
        point = {"step": step, "validation_accuracy": best - (3 - step) / 100, "train_loss": 1.0 / step}
        folder.add_point(point)
        tune.report(point)
    rows = {"example_id": ["a", "b"], "gold": ["positive", "negative"], "predicted": ["positive"] * 2}
    pd.DataFrame(rows).to_parquet(folder.predictions)
    folder.student.symlink_to(os.environ[STUDENT])
    scores = {"accuracy": best, "ci_low": 0.4, "ci_high": 0.6, "n": 2}
    result = {
        "trial_id": folder.path.name, "validation": scores, "test": scores, "best_step": 3, "steps": 3, "train_examples": 1,
        "train_pairs": 1, "train_seconds": 0.0, "seconds": 0.0, "parameters": 1, "cut_targets": 0, "cut_inputs": 0,
    }  # fmt: skip
    folder.write_result(result)
    tune.report({"step": 3, "validation_accuracy": best})


def run(path: str) -> dict[str, float]:
    """The driver: sweeps; its seconds, those of a processor, peak memory and trained trials."""
    import pipelines.sweep.run
    from cotd.study.config import load_config
    from cotd.training.train import untrained_student
    from pipelines.cluster.session import ray_session
    from pipelines.sweep.plan import plan_study

    pipelines.sweep.run.run_trial = noop_trial
    config = load_config(path)
    student = Path(path).with_name("student")
    untrained_student(plan_study(config).trials[0], config.task).save(student)
    os.environ[STUDENT] = str(student)
    with ray_session():
        started, cpu = time.perf_counter(), time.process_time()
        outcome = pipelines.sweep.run.sweep(config, yes=True)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = peak_megabytes()
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak, "trained": outcome["trained"]}


def runs_missing(path: Path) -> int:
    """Trials whose run in MLflow is not there, not finished, or lacks its parameters, curve or result."""
    import mlflow

    from cotd.study.config import load_config
    from pipelines.sweep.plan import plan_study

    config = load_config(path)
    client = mlflow.MlflowClient(config.tracking_uri(), config.tracking_uri())
    experiment = client.get_experiment_by_name(config.name).experiment_id
    runs: list[Any] = []
    token = ""
    while token is not None:
        page = client.search_runs([experiment], "tags.`cotd.kind` = 'trial'", max_results=1000, page_token=token)
        runs += page
        token = page.token
    complete = [
        r.data.tags["cotd.trial_id"] for r in runs
        if r.info.status == "FINISHED" and "test_accuracy" in r.data.metrics and "training.steps" in r.data.params
        and len(client.get_metric_history(r.info.run_id, "validation_accuracy")) == 3
    ]  # fmt: skip
    assert len(set(complete)) == len(complete), "a trial has two runs"
    return len({t.id for t in plan_study(config).trials} - set(complete))


def main() -> None:
    arguments = parse(__doc__, {"trials": "300,1000,3000"})
    figures = []
    for trials in [12] if arguments.small else map(int, arguments.trials.split(",")):
        with scratch_folder() as scratch:
            write_study(scratch, [1.0], trials, {"steps": 3, "eval_every": 1})
            path = scratch / "study.yaml"
            seen = call("sweep.noop", "run", path=path)
            missing = runs_missing(path)
        note = f"{seen['trained']} trials in {seen['seconds']:.0f} s, MLflow's rows and the workers' start included"
        figures += [
            figure(f"overhead_ms_per_trial_{trials}", seen["seconds"] / trials * 1000, "ms", note=note),
            figure(f"driver_cpu_ms_per_trial_{trials}", seen["cpu_seconds"] / trials * 1000, "ms"),
            figure(f"driver_peak_mb_{trials}", seen["peak_mb"], "MB"),
            figure(f"runs_missing_{trials}", missing, "runs"),
        ]
    write("sweep_noop", figures, arguments.small)


if __name__ == "__main__":
    main()
