"""Latency for one client: `python -m tests.benchmarks.serve_latency`; five minutes.

The endpoint against FastAPI with `model.generate` per request, and, in the notes, against `Student.predict` in process.
Every server has all cores, and the load generator a process of its own.
"""

from __future__ import annotations

from cotd.student import Student
from tests.benchmarks.figures import arguments, figure, write  # fmt: skip
from tests.benchmarks.serving import endpoint, load, milliseconds_each, review_texts, student_folders, usual_alternative


def main() -> None:
    small = arguments(__doc__ or "").small
    seconds = 1 if small else 30
    texts = review_texts()
    figures = []
    with student_folders() as folders:
        for size, folder in folders.items():
            student = Student.load(folder)
            student.predict(texts[:5])
            inside, inside_p99 = milliseconds_each(lambda text, s=student: s.predict([text]), texts[: 20 if small else 500])
            with usual_alternative(folder) as url:
                load(url, texts, seconds=1)
                usual = load(url, texts, seconds=seconds)
            with endpoint(str(folder), "--poll-seconds", "0") as url:
                load(url, texts, seconds=1)
                ours = load(url, texts, seconds=seconds)
                bare = load(url, [""], seconds=min(seconds, 5))  # refused at once: HTTP and Serve alone
            if ours["failed"] or usual["failed"]:
                raise SystemExit(f"requests failed: {ours['statuses']}, {usual['statuses']}")
            note = f"in process {inside:.1f} ms, HTTP and Serve alone {bare['median']:.1f} ms"
            base = "FastAPI + generate"
            count = len(ours["milliseconds"])
            figures.append(figure(f"median_ms_{size}", ours["median"], "ms", (base, usual["median"]), count, note))
            note = f"in process {inside_p99:.1f} ms"
            figures.append(figure(f"p99_ms_{size}", ours["p99"], "ms", (base, usual["p99"]), count, note))
    write("serve_latency", figures, small)


if __name__ == "__main__":
    main()
