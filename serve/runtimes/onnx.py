"""ONNX Runtime: the label graph in float32, or with weights of eight bits."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from cotd.students.student import Student
from serve.runtimes.base import BatchedRuntime
from serve.runtimes.label_graph import INPUTS, OUTPUT, label_graph


class OnnxScorer(BatchedRuntime):
    """Computes `Student.label_logits` by a graph in ONNX Runtime, with as many threads as PyTorch has here.

    Args:
        graph: see `serve.runtimes.label_graph`; serialized.
    """

    def __init__(self, student: Student, graph: bytes):
        import onnxruntime

        super().__init__(student)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        on_gpu = student.model.device.type == "cuda"
        providers = [*(["CUDAExecutionProvider"] if on_gpu else []), "CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(graph, options, providers=providers)

    def score(self, ids: Any, mask: Any) -> Any:
        """(B, T) token ids and their 0/1 mask → (B, labels)."""
        feed = dict(zip(INPUTS, (ids.cpu().numpy(), mask.cpu().numpy()), strict=True))
        return torch.from_numpy(self.session.run([OUTPUT], feed)[0])


def onnx_scorer(student: Student, int8: bool = False) -> OnnxScorer:
    """A student in ONNX Runtime; errors are those of `label_graph`."""
    graph = label_graph(student)
    return OnnxScorer(student, (quantized(graph) if int8 else graph).SerializeToString())


def quantized(graph: Any) -> Any:
    """A graph with the weights of its matrix products as int8; activations are quantised as they come.

    Each output channel has a scale of its own, which halves the error at the same speed. Weights get seven bits: processors
    with AVX2 or AVX-512 but without VNNI add products of two eight-bit numbers in 16 bits, which may overflow.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on the root logger to optimise the graph first: the session does
    try:
        with tempfile.TemporaryDirectory(prefix="cotd-onnx-") as scratch:
            path = Path(scratch) / "int8.onnx"
            quantize_dynamic(graph, path, weight_type=QuantType.QInt8, reduce_range=True, per_channel=True)
            return onnx.load(path)
    finally:
        root.setLevel(level)
