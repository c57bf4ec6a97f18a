"""Which number formats this machine computes fast."""

from __future__ import annotations

from functools import cache
from pathlib import Path

# x86: AVX512-BF16 or AMX tiles; Arm: the BF16 extension. Without one of these PyTorch emulates bfloat16, which was
# measured at 1 GFLOP/s against 123 in float32 on an AVX2 machine.
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@cache
def processor_flags(path: str = "/proc/cpuinfo") -> frozenset[str]:
    """The processor's feature flags as Linux lists them; empty where it does not."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        if line.lower().startswith(("flags", "features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def multiplies_bfloat16(use_gpu: bool) -> bool:
    """Whether bfloat16 matrix products run in hardware, on the GPU or on the processor."""
    if use_gpu:
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(BF16_FLAGS & processor_flags())


def choose_dtype(dtype: str, use_gpu: bool) -> str:
    """`dtype`, or for "auto" the faster of "bfloat16" and "float32" here."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if multiplies_bfloat16(use_gpu) else "float32"
