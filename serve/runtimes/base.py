"""Runtimes: what computes a student's label logits, and the check that one computes what the student does."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from cotd.errors import CotdError, nearest
from cotd.students.student import Student

# Short and long, plain and odd: lengths that share a batch, a text that is cut, characters the tokenizer does not know.
PROBES = [
    "A warm and funny film.",
    "Dull and lifeless: I checked my watch every five minutes.",
    "Not bad at all.",
    "The jokes fall flat, but the music is lovely and I would see it again.",
    "fine",
    "!!!",
    "¿Qué película más rara? 这部电影很好。 🎬",
    "It stopped working after a week, and nobody answered when I wrote to ask for my money back. " * 40,
]
# How far a probability may be from what the student says, by runtime: rounding alone, or numbers of 16 or 8 bits too.
TOLERANCES = {
    "torch": 1e-3, "torch-bf16": 0.02, "transformers": 1e-3, "onnxruntime": 1e-3, "onnxruntime-int8": 0.05,
    "ctranslate2-int8": 0.05,
}  # fmt: skip
# What a runtime needs beyond cotd itself, of the extra `export`: as pip calls it, which is also how it is imported.
PACKAGES = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "onnxruntime-int8": ("onnx", "onnxruntime"),
    "ctranslate2-int8": ("ctranslate2",),
}
# Stands for the one that `choose_runtime` names.
AUTO = "auto"
# Runtimes that compute one decoder step and no more.
LABEL_ONLY = ("torch-bf16", "onnxruntime", "onnxruntime-int8", "ctranslate2-int8")


class Unfit(CotdError):
    """A student that was loaded and must not be served: to load it again would change nothing."""


class Runtime(Protocol):
    """Computes label logits."""

    def label_logits(self, texts: Sequence[str]) -> tuple[Any, list[bool]]:
        """Scores of the label words, as `Student.label_logits` gives them: (len(texts), labels), and truncated flags."""
        ...


def torch_runtime(student: Student) -> Runtime:
    """T5 without what surrounds its arithmetic; as transformers runs it where that is another's, or writes before it answers."""
    from serve.runtimes.t5 import T5LabelScorer

    return T5LabelScorer(student) if student.model.config.model_type == "t5" and not student.rationale_before_label else student


def bf16_runtime(student: Student) -> Runtime:
    """`torch` in bfloat16: fast where the processor or the GPU multiplies it in hardware, and very slow elsewhere."""
    import torch

    from serve.runtimes.t5 import T5LabelScorer

    if student.model.config.model_type != "t5":
        raise Unfit(
            f"the runtime 'torch-bf16' computes T5, and this student is a {student.model.config.model_type}. Use torch."
        )
    return T5LabelScorer(student, torch.bfloat16)


def onnxruntime(student: Student, int8: bool = False) -> Runtime:
    from serve.runtimes.onnx import onnx_runtime

    return onnx_runtime(student, int8)


def ctranslate2(student: Student) -> Runtime:
    from serve.runtimes.ctranslate2 import ctranslate2_runtime

    return ctranslate2_runtime(student)


RUNTIMES: dict[str, Callable[[Student], Runtime]] = {
    "torch": torch_runtime,
    "torch-bf16": bf16_runtime,
    "transformers": lambda student: student,
    "onnxruntime": onnxruntime,
    "onnxruntime-int8": partial(onnxruntime, int8=True),
    "ctranslate2-int8": ctranslate2,
}


def choose_runtime(name: str, student: Student) -> str:
    """What AUTO stands for: of the runtimes that compute in float32, the fastest that can compute this student."""
    if name != AUTO:
        return name
    packages = PACKAGES["onnxruntime"]
    if student.rationale_before_label or student.model.device.type != "cpu" or not all(map(importlib.util.find_spec, packages)):
        return "torch"
    from serve.runtimes.label_graph import obstacle

    return "torch" if obstacle(student) else "onnxruntime"


def make_runtime(name: str, student: Student) -> Runtime:
    """The runtime called `name` for a student, checked.

    Raises:
        CotdError: there is no such runtime, or its packages are missing.
        Unfit: the runtime does not compute what the student does, or cannot.
    """
    require_runtime(name)
    name = choose_runtime(name, student)
    if student.rationale_as_input:
        raise Unfit(
            f"this student was trained by '{student.card.get('method')}': it reads the teacher's rationale beside each review, "
            "and cannot be served. Serve a student of another method."
        )
    if student.rationale_before_label and name in LABEL_ONLY:
        raise Unfit(
            f"this student was trained by '{student.card.get('method')}': it writes a rationale before its label, which the "
            f"runtime '{name}' cannot. Use the runtime torch."
        )
    runtime = RUNTIMES[name](student)
    check_parity(runtime, student, TOLERANCES[name])
    return runtime


def require_runtime(name: str) -> None:
    """Raises a CotdError if there is no such runtime, or if it needs packages that are not installed."""
    known = [AUTO, *RUNTIMES]
    if name not in known:
        raise CotdError(f"unknown runtime '{name}'; known: {', '.join(known)}.{nearest(name, known)}")
    require_packages(f"the runtime '{name}'", PACKAGES.get(name, ()))


def require_packages(what: str, packages: Sequence[str]) -> None:
    """Raises a CotdError with the pip command if any of the packages is not installed."""
    if any(importlib.util.find_spec(package) is None for package in packages):
        needed = shlex.join(bounded(packages))
        raise CotdError(f"{what} needs packages that are not installed. Run: {sys.executable} -m pip install {needed}")


def bounded(packages: Sequence[str]) -> list[str]:
    """The packages with the bounds that cotd gives their versions; bare where cotd itself is not installed."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in importlib.metadata.requires("cotd") or []]
    except importlib.metadata.PackageNotFoundError:
        declared = []
    bounds = {requirement.name: str(requirement.specifier) for requirement in declared}
    return [name + bounds.get(name, "") for name in packages]


def check_parity(runtime: Runtime, student: Student, tolerance: float) -> None:
    """Raises Unfit unless the runtime, given all probes at once, predicts what the student does for each alone.

    Probabilities must be numbers and within `tolerance`; labels must be equal, but where the student's two likeliest
    are closer to each other than that.
    """
    problems = []
    for text, ours in zip(PROBES, student.predictions(*runtime.label_logits(PROBES)), strict=True):
        theirs = student.predict([text])[0]
        first, second = sorted(theirs.probabilities.values(), reverse=True)[:2]
        apart = max(abs(ours.probabilities[label] - p) for label, p in theirs.probabilities.items())
        shown = text if len(text) < 60 else text[:57] + "…"
        if not all(math.isfinite(p) for p in ours.probabilities.values()):
            problems.append(f"'{shown}': a probability is not a number")
        elif apart > tolerance:
            problems.append(f"'{shown}': a probability is {apart:.4f} off, the tolerance is {tolerance}")
        elif ours.label != theirs.label and first - second > tolerance:
            problems.append(f"'{shown}': {ours.label} instead of {theirs.label}")
        elif ours.truncated != theirs.truncated:
            problems.append(f"'{shown}': truncated in one and not in the other")
    if problems:
        raise Unfit(f"the student does not pass its check ({len(problems)} of {len(PROBES)} probes): {problems[0]}")
