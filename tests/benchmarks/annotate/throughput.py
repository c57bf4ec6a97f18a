"""Rows a second of annotation over those of vLLM alone: `python -m tests.benchmarks.annotate.throughput`; twenty minutes.

Both answer the same label-score requests, on at least 1,000 embedded examples, then the same requests for a rationale of
some of them; the engine's start does not count, and nothing of what else starts meanwhile. The baseline is `LLM.generate`
on all prompts at once, in a process of its own, with the same engine arguments: as a user starts it, and again with what
workers here have the C library set to. All take turns.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cotd.students.base_models import resolve_model
from cotd.study.config import StudyConfig, check_config
from cotd.teachers.requests import Request
from cotd.utils.hardware import choose_dtype
from pipelines.annotate.engines.in_process import InProcessEngine
from pipelines.annotate.job import load_job
from pipelines.annotate.run import annotate
from pipelines.cluster.session import WORKER_ENVIRONMENT
from tests.benchmarks.figures import call, figure, is_small, scratch_folder, spread, write

TEACHER = "embedded:smollm2-135m-instruct"
REPEATS = 3
# The baselines, and what the C library is set to in each: a figure's name, its base and the variables.
ALONE = (
    ("rows_per_second", "LLM.generate", {}),
    ("rows_per_second_memory_settings_alike", "LLM.generate with workers' memory settings", WORKER_ENVIRONMENT),
)
STARTED = "COTD_BENCH_STARTED"  # names the file in which the engine notes when it is up


def study(folder: str, small: bool) -> StudyConfig:
    """1,000 examples are scored, 200 of them explained."""
    train, validation, test = (20, 40, 20) if small else (200, 300, 500)
    rows = {"train_rows": train, "validation_rows": validation, "test_rows": test}
    plain = {
        "name": "bench",
        "data": {"source": "embedded:rotten-tomatoes", **rows},
        "teacher": {"model": TEACHER, "gold_conditioned": False, "max_rationale_tokens": 32, "calibration": {"rows": 300}},
        "grid": {"method": ["distill"], "fraction": [1.0], "size": ["tiny"], "seed": [0]},
        "storage": folder,
    }  # fmt: skip
    return check_config(plain, "benchmark")


class TimedEngine(InProcessEngine):
    """Has answered one request, and notes the time, when it counts as started."""

    def __init__(self, arguments: dict[str, Any]):
        super().__init__(arguments)
        self._generate([("warm-up", warm_up().prompt, warm_up().sampling)])
        Path(os.environ[STARTED]).write_text(str(time.time()))


def annotation_seconds(config: StudyConfig, started: Path) -> tuple[float, list[list[Request]]]:
    """Seconds from when the engine is up until the last answer is there, as `cotd annotate` asks; what was asked."""
    from pipelines.annotate.engines.choose import teacher_engine
    from pipelines.cluster.session import ray_session

    asked: list[list[Request]] = []
    os.environ[STARTED] = str(started)
    answered = 0.0
    with ray_session(), teacher_engine(resolve_model(TEACHER), config.teacher.engine, engine_class=TimedEngine) as complete:

        def noted(requests: Iterable[Request]) -> Iterator[list[dict[str, Any]]]:
            nonlocal answered
            asked.append([])

            def each() -> Iterator[Request]:
                for request in requests:
                    asked[-1].append(request)
                    yield request

            yield from complete(each())
            answered = time.time()

        annotate(config, noted)
    return answered - float(started.read_text()), asked


def warm_up() -> Request:
    return Request(TEACHER, "", "Review: fine", {"max_tokens": 1, "temperature": 0.0})


def raw_seconds(file: str) -> float:
    """Seconds that `LLM.generate` takes for the passes in a file; in this process."""
    from vllm import LLM

    from cotd.teachers.config import EngineConfig
    from pipelines.annotate.engines.vllm import engine_arguments, sampling_parameters

    llm = LLM(model=resolve_model(TEACHER), **engine_arguments(EngineConfig(), use_gpu=False))
    llm.generate([warm_up().prompt], [sampling_parameters(warm_up().sampling)], use_tqdm=False)
    seconds = 0.0
    for rows in json.loads(Path(file).read_text()):
        started = time.perf_counter()
        llm.generate([r["prompt"] for r in rows], [sampling_parameters(r["sampling"]) for r in rows], use_tqdm=False)
        seconds += time.perf_counter() - started
    return seconds


def main() -> None:
    small = is_small(__doc__)
    ours, asked = [], [[]]
    alone: dict[str, list[float]] = {name: [] for name, _, _ in ALONE}
    for _ in range(1 if small else REPEATS):
        with scratch_folder() as scratch:  # a fresh store each time
            config = study(str(scratch), small)
            load_job(config)  # what the files need is loaded before the clock starts
            seconds, asked = annotation_seconds(config, scratch / "started")
            ours.append(seconds)
            for name, _, settings in ALONE:
                alone[name].append(seconds_alone(config, asked, scratch / "passes.json", settings))
    rows = sum(map(len, asked))
    note = f"{len(asked[0]):,} label scores and {len(asked[1]):,} rationales, {choose_dtype('auto', False)}; "
    note += f"ours {spread(ours, 0)} s, alone "
    rate = rows / statistics.median(ours)
    figures = [
        figure(
            name, rate, "rows/s", (base, rows / statistics.median(alone[name])), len(ours), f"{note}{spread(alone[name], 0)} s"
        )
        for name, base, _ in ALONE
    ]
    write("annotate_throughput", figures, small)


def seconds_alone(config: StudyConfig, asked: list[list[Request]], passes: Path, settings: dict[str, str]) -> float:
    """`raw_seconds` of what was asked, in a process of its own with these settings of the C library."""
    from pipelines.annotate.engines.vllm import environment

    passes.write_text(json.dumps([[{"prompt": r.prompt, "sampling": r.sampling} for r in p] for p in asked]))
    inherited = {name: value for name, value in os.environ.items() if name not in WORKER_ENVIRONMENT}
    variables = (
        inherited | settings | environment(config.teacher.engine, os.cpu_count() or 1) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    )
    return call("annotate.throughput", "raw_seconds", env=variables, file=passes)


if __name__ == "__main__":
    main()
