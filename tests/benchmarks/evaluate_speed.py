"""Labels of 1,000 examples: one decoder step over the label words against `generate`: `python -m tests.benchmarks.evaluate_speed`.

Ten minutes. `Student.predict` is what scores validation and test; the baseline writes the label out, greedily, an example at a
time and in padded batches of 32. In process, by turns; of one at a time, a quarter of the examples.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from cotd.students.student import Student
from tests.benchmarks.figures import figure, is_small, write
from tests.benchmarks.students import BATCH, example_texts
from tests.benchmarks.train.papers import student
from tests.tasks import SENTIMENT

REPEATS = 3
LABEL_TOKENS = 3  # of the longest label, with its end


@torch.inference_mode()
def written_labels(student: Student, texts: list[str], batch: int) -> list[str]:
    """What `generate` writes as labels, which need not be labels."""
    written: list[str] = []
    for start in range(0, len(texts), batch):
        asked = [SENTIMENT.label_prefix + text for text in texts[start : start + batch]]
        inputs = student.tokenizer(asked, padding=True, truncation=True, max_length=128, return_tensors="pt")
        ids = student.model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=LABEL_TOKENS,
            do_sample=False, num_beams=1,
        )  # fmt: skip
        written += student.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return written


def rate(work: Callable[[list[str]], Any], texts: list[str]) -> float:
    started = time.perf_counter()
    work(texts)
    return len(texts) / (time.perf_counter() - started)


def main() -> None:
    small = is_small(__doc__)
    texts = example_texts(64 if small else 1000)
    figures = []
    for which in ("embedded", "60m"):
        made = student(which)
        made.model.eval()
        ways: dict[str, tuple[Callable[[list[str]], Any], list[str]]] = {
            "generate, one at a time": (lambda some, s=made: written_labels(s, some, 1), texts[: len(texts) // 4]),  # type: ignore[misc]
            f"generate, batches of {BATCH}": (lambda some, s=made: written_labels(s, some, BATCH), texts),  # type: ignore[misc]
            "ours": (made.predict, texts),
        }
        for work, _ in ways.values():
            work(texts[:BATCH])
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(1 if small else REPEATS):
            for name, (work, some) in ways.items():
                found[name].append(rate(work, some))
        ours = statistics.median(found["ours"])
        for name in list(ways)[:-1]:
            base = (name, statistics.median(found[name]))
            label = "one" if name.endswith("a time") else "batched"
            figures.append(figure(f"{which}_against_{label}", ours, "examples/s", base, len(found[name])))
    write("evaluate_speed", figures, small)


if __name__ == "__main__":
    main()
