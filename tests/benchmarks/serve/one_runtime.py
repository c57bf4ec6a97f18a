"""One runtime of one student in a process of its own, so that its memory and its threads are its own; prints JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import psutil
import torch

from cotd.errors import CotdError
from cotd.students.student import Student
from serve.runtimes.parity import check_parity
from serve.runtimes.registry import RUNTIMES
from tests.benchmarks.students import BATCH, milliseconds_each, texts_per_second

COMPARISON_SECONDS = 30.0  # for comparing labels


def measure(folder: str, runtime: str, texts: list[str], threads: int, seconds: float, latency_texts: int) -> dict[str, Any]:
    """Latency, throughput, load time, memory and agreement with `Student.predict`, over the same texts.

    Returns:
        `median_ms` and `p99_ms` of one text, over `latency_texts` of them; `texts_per_second` in batches of 32;
        `load_seconds` of the runtime, the student being loaded, without its check; `rss_mb` of the process, in MiB, once
        warm, with the student as transformers has it; `labels_equal`, a share of `compared` texts; `apart`, the largest
        difference of a probability; and `refused`, why the endpoint would not take it, or None. A runtime that is very
        slow here is asked about fewer texts.
    """
    torch.set_num_threads(threads)
    student = Student.load(folder)
    started = time.perf_counter()
    made = RUNTIMES[runtime].build(student)
    measured: dict[str, Any] = {"load_seconds": time.perf_counter() - started, "refused": None}
    try:
        check_parity(made, student, RUNTIMES[runtime].tolerance)
    except CotdError as error:
        measured["refused"] = str(error)
    made.label_logits(texts[:1])
    each = milliseconds_each(lambda text: made.label_logits([text]), texts[:latency_texts], seconds)
    measured["median_ms"], measured["p99_ms"], measured["latency_texts"] = each
    measured["texts_per_second"] = texts_per_second(made.label_logits, texts, seconds)
    measured["rss_mb"] = psutil.Process().memory_info().rss / 2**20
    compared = max(1, min(len(texts), int(COMPARISON_SECONDS * measured["texts_per_second"]) // BATCH * BATCH))
    chunks = [texts[start : min(start + BATCH, compared)] for start in range(0, compared, BATCH)]
    ours = [p for chunk in chunks for p in student.predictions(*made.label_logits(chunk))]
    expected = student.predict(texts[:compared])
    measured["compared"] = compared
    measured["labels_equal"] = float(np.mean([a.label == b.label for a, b in zip(ours, expected, strict=True)]))
    measured["apart"] = max(
        abs(a.probabilities[k] - b.probabilities[k]) for a, b in zip(ours, expected, strict=True) for k in a.probabilities
    )
    return measured


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
