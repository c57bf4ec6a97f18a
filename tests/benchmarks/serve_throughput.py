"""Requests a second at 1, 8, 32 and 128 clients: `python -m tests.benchmarks.serve_throughput`; eight minutes.

The endpoint against FastAPI with `model.generate` per request, and against the student in process in batches of 32.
"""

from __future__ import annotations

import time

from cotd.student import Student
from tests.benchmarks.figures import arguments, figure, write  # fmt: skip
from tests.benchmarks.serving import endpoint, load, review_texts, student_folders, usual_alternative

CLIENTS = (1, 8, 32, 128)


def in_process_rate(student: Student, texts: list[str], seconds: float) -> float:
    """Texts a second in batches of 32."""
    done, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < seconds:
        start = done % (len(texts) - 32)
        student.predict(texts[start : start + 32], batch_size=32)
        done += 32
    return done / took


def main() -> None:
    small = arguments(__doc__ or "").small
    seconds = 1 if small else 20
    texts = review_texts()
    figures = []
    with student_folders() as folders:
        for size, folder in folders.items():
            student = Student.load(folder)
            in_process_rate(student, texts, 1)
            limit = in_process_rate(student, texts, seconds)
            usual, ours = {}, {}
            with usual_alternative(folder) as url:
                for clients in CLIENTS:
                    usual[clients] = load(url, texts, clients=clients, seconds=seconds)
            with endpoint(str(folder), "--poll-seconds", "0") as url:
                load(url, texts, clients=8, seconds=1)
                for clients in CLIENTS:
                    ours[clients] = load(url, texts, clients=clients, seconds=seconds)
            for clients in CLIENTS:
                seen = ours[clients]
                note = f"median {seen['median']:.0f} ms, 99th percentile {seen['p99']:.0f} ms, {seen['failed']} failed"
                name = f"requests_per_second_{size}_{clients}"
                base = ("FastAPI + generate", usual[clients]["rate"])
                figures.append(figure(name, seen["rate"], "1/s", base, len(seen["milliseconds"]), note))
            best = max(seen["rate"] for seen in ours.values())
            base = ("in process, batches of 32", limit)
            figures.append(figure(f"share_of_in_process_{size}", best / limit, "", None, 1, f"{base[0]}: {limit:.0f}/s"))
    write("serve_throughput", figures, small)


if __name__ == "__main__":
    main()
