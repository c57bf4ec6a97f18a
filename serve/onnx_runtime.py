"""ONNX: the label scorer as one graph, in float32 or with weights of eight bits, and ONNX Runtime to run it."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cotd.errors import CotdError
from cotd.student import Student
from serve.t5 import T5LabelScorer

INPUTS = ["input_ids", "attention_mask"]
OUTPUT = "logits"
# Mean of squares, its root and the reciprocal: 20 has all that the graph uses, and old runtimes read it.
OPSET = 20


class LabelGraph(torch.nn.Module):
    """What is traced: (B, T) token ids and their 0/1 mask → (B, labels). Holds the model so that its weights have names."""

    def __init__(self, student: Student):
        super().__init__()
        self.model = student.model
        self.scorer = T5LabelScorer(student)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.scorer.score(input_ids, attention_mask)


def write_graph(student: Student, path: Path) -> None:
    """Writes `Student.label_logits` as an ONNX graph: encoder, one decoder step, logits of the label words.

    Inputs `input_ids` and `attention_mask`: int64, (B, T), T at most the student's `max_input_tokens`. Output `logits`:
    float32, (B, labels), before temperature scaling. Both axes are dynamic; all weights are in the one file.

    Raises:
        CotdError: the student is no T5.
    """
    kind = student.model.config.model_type
    if kind != "t5":
        raise CotdError(f"the ONNX graph is written for T5, and this student is a {kind}. Use another format or runtime.")
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=student.max_input_tokens)
    # Two rows: a batch of one would be traced as always one. Two tensors: one given twice would be traced as one input.
    ids = torch.zeros(2, min(4, student.max_input_tokens), dtype=torch.long, device=student.model.device)
    mask = torch.ones_like(ids)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns that there is no torchvision
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The exporter over torch.export: the older one does not know rms_norm.
            program = torch.onnx.export(
                LabelGraph(student).eval(), (ids, mask), input_names=INPUTS, output_names=[OUTPUT], opset_version=OPSET,
                dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}), dynamo=True, verbose=False,
            )  # fmt: skip
            assert program is not None
            program.save(path, external_data=False)
    finally:
        log.setLevel(level)


def quantize_graph(source: Path, target: Path) -> None:
    """Writes a graph with the weights of its matrix products as int8; activations are quantised as they come.

    Weights get seven bits: processors with AVX2 or AVX-512 but without VNNI add products of two eight-bit numbers in 16
    bits, which may overflow.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source)
    # Shapes that the exporter noted; the quantiser transposes weights and then finds them to differ.
    del graph.graph.value_info[:]
    bare = target.with_suffix(".bare.onnx")
    onnx.save(graph, bare)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on the root logger to optimise the graph first: the session will
    try:
        quantize_dynamic(bare, target, weight_type=QuantType.QInt8, reduce_range=True)
    finally:
        root.setLevel(level)
        bare.unlink(missing_ok=True)


class OnnxScorer:
    """Computes `Student.label_logits` by a graph in ONNX Runtime, with as many threads as PyTorch has here."""

    def __init__(self, student: Student, graph: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        if student.model.device.type == "cuda":
            providers.insert(0, "CUDAExecutionProvider")
        self.student = student
        self.session = onnxruntime.InferenceSession(graph.read_bytes(), options, providers=providers)

    def label_logits(self, texts: Sequence[str]) -> tuple[Any, list[bool]]:
        """Scores of the label words, on the CPU: (len(texts), labels), and whether each text was truncated."""
        scores = torch.empty(len(texts), len(self.student.task.labels))
        truncated = [False] * len(texts)
        for indices, batch, cut in self.student.batches(texts, self.student.task.label_prefix, max(1, len(texts))):
            feed = {name: batch[name].cpu().numpy() for name in INPUTS}
            scores[indices] = torch.from_numpy(self.session.run([OUTPUT], feed)[0])
            for i, was_cut in zip(indices, cut, strict=True):
                truncated[i] = was_cut
        return scores, truncated


def onnx_runtime(student: Student, int8: bool = False) -> OnnxScorer:
    """A student in ONNX Runtime; exporting it takes seconds, and the files are gone when this returns."""
    with tempfile.TemporaryDirectory(prefix="cotd-onnx-") as scratch:
        graph = Path(scratch) / "model.onnx"
        write_graph(student, graph)
        if int8:
            quantize_graph(graph, smaller := Path(scratch) / "int8.onnx")
            graph = smaller
        return OnnxScorer(student, graph)
