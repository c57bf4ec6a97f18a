"""All runtimes by name, and the choice of one for a student."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cotd.errors import CotdError, unknown
from cotd.students.backends.causal.backend import in_bfloat16
from cotd.students.student import Student
from serve.runtimes.base import Runtime, StudentRuntime, Unfit, label_step_obstacle
from serve.runtimes.packages import installed, require_packages
from serve.runtimes.parity import EXACT, REDUCED, check_parity

AUTO = "auto"  # the runtime that `choose_runtime` names


def torch_runtime(student: Student) -> Runtime:
    """The reduced T5; the student itself for other models, and where one step does not answer.

    Of a student that answers in bfloat16 the weights are converted and laid out here, and not for each text.
    """
    from serve.runtimes.blocked import lay_out_weights
    from serve.runtimes.t5 import T5LabelScorer

    if student.backend.reduced:
        student = Student(in_bfloat16(student.model), student.tokenizer, student.task, student.card)
        lay_out_weights(student.model)
    return StudentRuntime(student) if label_step_obstacle(student) else T5LabelScorer(student)


def bf16_runtime(student: Student) -> Runtime:
    """`torch` in bfloat16: fast where the processor or the GPU multiplies it in hardware, and very slow elsewhere."""
    import torch

    from serve.runtimes.t5 import T5LabelScorer

    return T5LabelScorer(student, torch.bfloat16)


def onnx_runtime(student: Student, int8: bool = False) -> Runtime:
    """ONNX Runtime, see `serve.runtimes.onnx`."""
    from serve.runtimes.onnx import onnx_scorer

    return onnx_scorer(student, int8)


def ctranslate2_runtime(student: Student) -> Runtime:
    """CTranslate2, see `serve.runtimes.ctranslate2`."""
    from serve.runtimes.ctranslate2 import ctranslate2_scorer

    return ctranslate2_scorer(student)


@dataclass(frozen=True)
class Kind:
    """One way of computing predictions.

    Attributes:
        tolerance: how far a probability may be from the student's.
        label_only: it computes one decoder step of a T5, see `label_step_obstacle`.
        packages: what it needs beyond cotd itself, of the extra `export`.
    """

    build: Callable[[Student], Runtime]
    tolerance: float = EXACT
    label_only: bool = True
    packages: tuple[str, ...] = ()


RUNTIMES = {
    "torch": Kind(torch_runtime, label_only=False),
    "torch-bf16": Kind(bf16_runtime, tolerance=REDUCED),
    "transformers": Kind(StudentRuntime, label_only=False),
    "onnxruntime": Kind(onnx_runtime, packages=("onnx", "onnxruntime")),
    "onnxruntime-int8": Kind(partial(onnx_runtime, int8=True), tolerance=REDUCED, packages=("onnx", "onnxruntime")),
    "ctranslate2-int8": Kind(ctranslate2_runtime, tolerance=REDUCED, packages=("ctranslate2",)),
}


def choose_runtime(name: str, student: Student) -> str:
    """`name`, or for `auto` the fastest runtime that computes this student in float32."""
    if name != AUTO:
        return name
    on_cpu = student.model.device.type == "cpu"
    if not on_cpu or not installed(RUNTIMES["onnxruntime"].packages) or label_step_obstacle(student):
        return "torch"
    from serve.runtimes.label_graph import obstacle

    return "torch" if obstacle(student) else "onnxruntime"


def make_runtime(name: str, student: Student) -> Runtime:
    """The runtime called `name` for a student, checked.

    Raises:
        CotdError: there is no such runtime, or its packages are missing.
        Unfit: the runtime cannot compute the student, or does not predict what it does.
    """
    require_runtime(name)
    name = choose_runtime(name, student)
    kind, method = RUNTIMES[name], student.card.get("method")
    if student.rationale_as_input:
        raise Unfit(
            f"this student was trained by '{method}': it reads the teacher's rationale beside each example, "
            "and cannot be served. Serve a student of another method."
        )
    if kind.label_only and (problem := label_step_obstacle(student)):
        raise Unfit(f"the runtime '{name}' {problem}. Use the runtime torch.")
    runtime = kind.build(student)
    check_parity(runtime, student, max(kind.tolerance, own_tolerance(student)))
    return runtime


def own_tolerance(student: Student) -> float:
    """How far a student's own probabilities for a text may differ with the texts that share its batch.

    Causal students compute in bfloat16 where the machine multiplies it; a temperature below 1 spreads what differs in their logits.
    What they write before they answer may then differ, and the answer with it.
    """
    if not student.backend.reduced:
        return EXACT
    return math.inf if student.free_answers or student.rationale_before_label else REDUCED / min(1.0, student.temperature)


def require_runtime(name: str) -> None:
    """Raises a CotdError if there is no such runtime, or if it needs packages that are not installed."""
    known = [AUTO, *RUNTIMES]
    if name not in known:
        raise CotdError(unknown("runtime", name, known))
    if name != AUTO:
        require_packages(f"the runtime '{name}'", RUNTIMES[name].packages)
