"""Kills at random moments of one run: `python -m tests.benchmarks.annotate.kills`; about five minutes.

A 2,000-row run with a stub engine is started and ended by `kill -9`, 20 times, then left alone. The requests that an API would
charge for are those the stub received: it notes each key before it completes it.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.study.config import load_config
from cotd.teachers.requests import Request
from cotd.utils.iteration import batched
from pipelines.annotate.files import AnnotationFiles
from pipelines.annotate.run import annotate
from tests.benchmarks.annotate.stub import stub_completion, write_study
from tests.benchmarks.figures import command, figure, is_small, scratch_folder, write

BLOCK = 32
SECONDS_A_BLOCK = 0.25


def run(path: str) -> None:
    """One run of the study, until it is done or killed."""

    def complete(requests: Iterable[Request]) -> Iterator[list[dict[str, Any]]]:
        with open(Path(path).with_name("requests.txt"), "a") as log:
            for batch in batched(requests, BLOCK):
                log.write("".join(f"{r.key}\n" for r in batch))
                log.flush()
                time.sleep(SECONDS_A_BLOCK)
                yield [stub_completion(r.key, r.prompt, r.sampling) for r in batch]

    annotate(load_config(path), complete)


def main() -> None:
    small = is_small(__doc__)
    kills, rows = (3, 300) if small else (20, 2000)
    draw = random.Random(0)
    with scratch_folder() as scratch:
        config = write_study(scratch, rows)
        annotating = command("annotate.kills", "run", path=scratch / "study.yaml")
        log = scratch / "requests.txt"
        log.touch()
        killed = 0
        while killed < kills:
            before = len(log.read_text().splitlines())
            process = subprocess.Popen(annotating, stderr=subprocess.DEVNULL)
            while process.poll() is None and len(log.read_text().splitlines()) == before:
                time.sleep(0.05)  # until it works: a kill while Python starts shows nothing
            time.sleep(draw.uniform(0, 6 * SECONDS_A_BLOCK))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
            elif process.returncode == 0:
                break
            process.wait()
        subprocess.run(annotating, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        table = pd.read_parquet(AnnotationFiles.of(config).annotations)
        usable = table[table["error"].isna() & ~table["gold_conditioned"]]
        asked = Counter(log.read_text().splitlines())
        twice = sum(n - 1 for n in asked.values())
        lost = rows - usable["example_id"].nunique()
        key = ["example_id", "gold_conditioned", "sample"]
        note = f"{twice} of {len(asked):,} requests were paid twice: {twice / max(killed, 1):.1f} a kill, a block is {BLOCK}"
        figures = [
            figure("kills", killed, "kills", note=note),
            figure("rows_expected", rows, "rows"),
            figure("rows_lost", lost, "rows"),
            figure("rows_duplicated", int(table.duplicated(key).sum()), "rows"),
        ]
        write("annotate_kills", figures, small)


if __name__ == "__main__":
    main()
