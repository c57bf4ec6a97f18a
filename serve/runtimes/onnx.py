"""ONNX Runtime: the label graph, in float32 or with weights of eight bits."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cotd.students.student import Student
from serve.runtimes.label_graph import INPUTS, OUTPUT, label_graph
from serve.runtimes.t5 import texts_together


def quantized(graph: Any) -> Any:
    """A graph with the weights of its matrix products as int8; activations are quantised as they come.

    Weights get seven bits: processors with AVX2 or AVX-512 but without VNNI add products of two eight-bit numbers in 16
    bits, which may overflow.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on the root logger to optimise the graph first: the session will
    try:
        with tempfile.TemporaryDirectory(prefix="cotd-onnx-") as scratch:
            smaller = Path(scratch) / "int8.onnx"
            quantize_dynamic(graph, smaller, weight_type=QuantType.QInt8, reduce_range=True)
            return onnx.load(smaller)
    finally:
        root.setLevel(level)


class OnnxScorer:
    """Computes `Student.label_logits` by a graph in ONNX Runtime, with as many threads as PyTorch has here.

    Args:
        graph: see `serve.runtimes.label_graph`; as it is written to a file.
    """

    def __init__(self, student: Student, graph: bytes):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        if student.model.device.type == "cuda":
            providers.insert(0, "CUDAExecutionProvider")
        self.student = student
        self.session = onnxruntime.InferenceSession(graph, options, providers=providers)

    def label_logits(self, texts: Sequence[str]) -> tuple[Any, list[bool]]:
        """Scores of the label words, on the CPU: (len(texts), labels), and whether each text was truncated."""
        scores = torch.empty(len(texts), len(self.student.task.labels))
        truncated = [False] * len(texts)
        together = texts_together(self.student, len(texts))
        for indices, batch, cut in self.student.batches(texts, self.student.task.label_prefix, together):
            feed = {name: batch[name].cpu().numpy() for name in INPUTS}
            scores[indices] = torch.from_numpy(self.session.run([OUTPUT], feed)[0])
            for i, was_cut in zip(indices, cut, strict=True):
                truncated[i] = was_cut
        return scores, truncated


def onnx_runtime(student: Student, int8: bool = False) -> OnnxScorer:
    graph = label_graph(student)
    return OnnxScorer(student, (quantized(graph) if int8 else graph).SerializeToString())
