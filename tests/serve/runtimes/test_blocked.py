"""Weights laid out for the processor."""

from __future__ import annotations

import pytest
import torch

from cotd.students.base_models import load_base
from cotd.students.student import Student
from cotd.utils.hardware import multiplies_bfloat16
from serve.runtimes.blocked import BlockedLinear
from serve.runtimes.parity import PROBES, difference
from serve.runtimes.registry import make_runtime, own_tolerance
from tests.tasks import SENTIMENT

pytestmark = pytest.mark.skipif(not multiplies_bfloat16(False), reason="needs a processor that multiplies bfloat16")


@pytest.mark.parametrize("bias", [True, False])
def test_they_give_the_same_products(bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 80, bias).bfloat16()
    blocked = BlockedLinear(layer)
    for shape in [(1,), (3, 7), (200,)]:
        x = torch.randn(*shape, 48).bfloat16()
        assert torch.allclose(blocked(x), layer(x), atol=1e-2, rtol=1e-2)


@pytest.mark.integration
def test_a_real_causal_student_is_served_with_them() -> None:
    student = Student(*load_base("embedded:smollm2-135m-instruct"), SENTIMENT, {"max_input_tokens": 64, "max_target_tokens": 8})
    runtime = make_runtime("auto", student)
    assert any(isinstance(module, BlockedLinear) for module in runtime.student.model.modules())
    assert runtime.student.backend.lean
    for actual, expected in zip(runtime.predict(PROBES), student.predict(PROBES), strict=True):
        assert difference(actual, expected, own_tolerance(student)) is None
    assert runtime.student.explain(PROBES[:1]) == student.explain(PROBES[:1])
