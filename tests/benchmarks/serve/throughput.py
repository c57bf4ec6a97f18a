"""Requests a second at 1, 8, 32 and 128 clients, and where their time goes: `python -m tests.benchmarks.serve.throughput`.

The endpoint against FastAPI with `model.generate` per request, and against its own runtime in process in batches of 32,
which is what no endpoint of one replica can exceed; nine minutes. The profile is of differences of the endpoint's own
metrics around each load.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from cotd.students.student import Student
from serve.runtimes.registry import AUTO, make_runtime
from tests.benchmarks.figures import figure, is_small, write
from tests.benchmarks.serve.servers import endpoint, load, metrics, usual_alternative
from tests.benchmarks.students import BATCH, CORES, example_texts, student_folders, texts_per_second

CLIENTS = (1, 8, 32, 128)
SUMS = {
    "requests": 'cotd_request_seconds_count{route="/v1/predict"}',
    "request_seconds": 'cotd_request_seconds_sum{route="/v1/predict"}',
    "batches": 'cotd_batch_seconds_count{work="label"}',
    "batch_seconds": 'cotd_batch_seconds_sum{work="label"}',
    "texts": 'cotd_batch_texts_sum{work="label"}',
}


def profiled_load(url: str, texts: list[str], **options: Any) -> dict[str, Any]:
    """`load`, with where a request's mean time went (ms), the texts a batch, and how busy the model was (a share).

    `http_ms` is the client's time minus the replica's: HAProxy, HTTP, and the client's own part. `queue_ms` is the replica's
    time minus its batch's: waiting for the batch before, reading and writing JSON.
    """
    before = metrics(url)
    seen = load(url, texts, **options)
    after = metrics(url)
    grown = {what: after[name] - before.get(name, 0.0) for what, name in SUMS.items()}
    replica_ms = 1000 * grown["request_seconds"] / grown["requests"]
    seen["batch_ms"] = 1000 * grown["batch_seconds"] / grown["batches"]
    seen["queue_ms"] = replica_ms - seen["batch_ms"]
    seen["http_ms"] = seen["mean"] - replica_ms
    seen["texts_a_batch"] = grown["texts"] / grown["batches"]
    seen["busy"] = grown["batch_seconds"] / seen["seconds"]
    return seen


def in_process(folder: Any, texts: list[str], seconds: float) -> dict[str, float]:
    """Texts a second in batches of 32, by the endpoint's runtime and by `Student.predict`; tokenising's share of the first."""
    torch.set_num_threads(CORES)
    student = Student.load(folder, device="cpu")
    runtime = make_runtime(AUTO, student)
    limit = texts_per_second(runtime.label_logits, texts, seconds)
    predict = texts_per_second(lambda some: student.predict(some, batch_size=BATCH), texts, seconds)
    tokenising = texts_per_second(lambda some: list(student.batches(some, student.answer_kind, BATCH)), texts, min(seconds, 2))
    return {"limit": limit, "predict": predict, "tokenising": limit / tokenising}


def main() -> None:
    small = is_small(__doc__)
    seconds = 1 if small else 20
    texts = example_texts()
    figures = []
    began = time.perf_counter()
    with student_folders() as folders:
        for size, folder in folders.items():
            inside = in_process(folder, texts, min(seconds, 10))
            usual, ours = {}, {}
            with usual_alternative(folder) as url:
                for clients in CLIENTS:
                    usual[clients] = load(url, texts, clients=clients, seconds=seconds)
            with endpoint(str(folder), "--poll-seconds", "0") as url:
                load(url, texts, clients=8, seconds=1)
                for clients in CLIENTS:
                    ours[clients] = profiled_load(url, texts, clients=clients, seconds=seconds)
            for clients, seen in ours.items():
                note = f"median {seen['median']:.0f} ms, 99th percentile {seen['p99']:.0f} ms, {seen['failed']} failed"
                base = ("FastAPI + generate", usual[clients]["rate"])
                count = len(seen["milliseconds"])
                figures.append(figure(f"requests_per_second_{size}_{clients}", seen["rate"], "1/s", base, count, note))
            figures += shares(size, inside, {clients: seen["rate"] for clients, seen in ours.items()})
            figures += profile(size, ours)
    print(f"{time.perf_counter() - began:.0f} s in all")
    write("serve_throughput", figures, small)


def shares(size: str, inside: dict[str, float], rates: dict[int, float]) -> list[dict[str, Any]]:
    """How much of the in-process limit was reached."""
    base = ("the runtime in process, batches of 32", inside["limit"])
    best = max(rates, key=lambda clients: rates[clients])
    reached = f"32 clients; {base[0]}: {base[1]:.0f}/s"
    tokenising = "of the runtime's time in process; the model: the rest"
    return [
        figure(f"in_process_limit_{size}", inside["limit"], "1/s", ("Student.predict, batches of 32", inside["predict"])),
        figure(f"share_of_in_process_{size}", rates[32] / inside["limit"], "", note=reached),
        figure(f"best_of_in_process_{size}", rates[best], "1/s", base, note=f"{best} clients"),
        figure(f"tokenising_share_{size}", inside["tokenising"], "", note=tokenising),
    ]


def profile(size: str, ours: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Where a request's mean time went, by the number of clients."""
    figures = []
    for clients in (1, 32):
        seen = ours[clients]
        batches = f"{seen['texts_a_batch']:.1f} texts a batch; the model was busy {seen['busy']:.0%} of the time"
        for part, note in {"http_ms": "HAProxy, HTTP, the client", "queue_ms": "queue, JSON", "batch_ms": batches}.items():
            figures.append(figure(f"{part}_{size}_{clients}", seen[part], "ms", ("the whole request", seen["mean"]), note=note))
    return figures


if __name__ == "__main__":
    main()
