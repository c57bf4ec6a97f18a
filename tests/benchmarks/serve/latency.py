"""Latency for one client: `python -m tests.benchmarks.serve.latency`; eight minutes.

The endpoint against FastAPI with `model.generate` per request, against `Student.predict` of the same texts in process,
and against the endpoint's own runtime in process: what is left between the last two is HTTP and Serve. Every server has
all cores, and the load generator a process of its own.
"""

from __future__ import annotations

import torch

from cotd.students.student import Student
from serve.runtimes.registry import AUTO, make_runtime
from tests.benchmarks.figures import figure, is_small, write
from tests.benchmarks.serve.servers import endpoint, load, usual_alternative
from tests.benchmarks.students import CORES, MEANING, example_texts, milliseconds_each, student_folders


def main() -> None:
    small = is_small(__doc__)
    seconds = 1 if small else 30
    texts = example_texts()
    some = texts[: 20 if small else 500]
    torch.set_num_threads(CORES)
    figures = []
    with student_folders(MEANING) as folders:
        for size, folder in folders.items():
            student = Student.load(folder, device="cpu")
            runtime = make_runtime(AUTO, student)
            student.predict(texts[:5])
            inside, inside_p99, _ = milliseconds_each(lambda text, s=student: s.predict([text]), some)
            bare_model, bare_p99, _ = milliseconds_each(lambda text, r=runtime: r.label_logits([text]), some)
            with usual_alternative(folder) as url:
                load(url, texts, seconds=1)
                usual = load(url, texts, seconds=seconds)
            with endpoint(str(folder), "--poll-seconds", "0") as url:
                load(url, texts, seconds=1)
                ours = load(url, texts, seconds=seconds)
                refused = load(url, [""], seconds=min(seconds, 5))  # at once, by the replica
            if ours["failed"] or usual["failed"]:
                raise SystemExit(f"requests failed: {ours['statuses']}, {usual['statuses']}")
            base, count = "FastAPI + generate", len(ours["milliseconds"])
            over = f"{ours['median'] - bare_model:.1f} ms more than the runtime in process"
            figures += [
                figure(f"median_ms_{size}", ours["median"], "ms", (base, usual["median"]), count, over),
                figure(f"p99_ms_{size}", ours["p99"], "ms", (base, usual["p99"]), count),
                figure(f"over_predict_ms_{size}", ours["median"], "ms", ("Student.predict", inside), count),
                figure(f"over_runtime_ms_{size}", ours["median"], "ms", ("the runtime in process", bare_model), count),
                figure(f"predict_ms_{size}", inside, "ms", None, len(some), f"99th percentile {inside_p99:.1f} ms"),
                figure(f"runtime_ms_{size}", bare_model, "ms", None, len(some), f"99th percentile {bare_p99:.1f} ms"),
                figure(
                    f"http_and_serve_ms_{size}", refused["median"], "ms", None, len(refused["milliseconds"]),
                    f"a request that the replica refuses at once; 99th percentile {refused['p99']:.1f} ms",
                ),
            ]  # fmt: skip
    write("serve_latency", figures, small)


if __name__ == "__main__":
    main()
