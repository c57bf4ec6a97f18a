"""Label prediction as one ONNX graph: the encoder, one decoder step, and of the vocabulary only the label words.

The arithmetic of `serve.runtimes.t5` over the same weights, written node by node rather than traced by torch.onnx: that takes a
moment instead of ten seconds, and constants are computed beforehand. Products over the same rows are one product: queries,
keys and values of an attention, both halves of a gate, and the keys and values of all cross-attentions.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from cotd.errors import CotdError
from cotd.students.student import Student
from serve.runtimes.base import label_step_obstacle

INPUTS = ["input_ids", "attention_mask"]
OUTPUT = "logits"
OPSET, IR_VERSION = 20, 10  # the lowest with GELU, so that old runtimes read it too
MAX_BYTES = 2**31 - 2**20  # of a graph in one file: protocol buffers hold no more
ACTIVATIONS = {"relu": ("Relu", {}), "gelu": ("Gelu", {}), "gelu_new": ("Gelu", {"approximate": "tanh"})}


def label_graph(student: Student) -> onnx.ModelProto:
    """`Student.label_logits` of a T5 (v1.0 or v1.1) as a graph.

    Inputs `input_ids` and `attention_mask`: int64, (B, T), T at most the student's `max_input_tokens`. Output `logits`:
    float32, (B, labels), before temperature scaling. Both axes are dynamic; all weights are in the graph.

    Raises:
        CotdError: one decoder step of a T5 does not give its answers, it has an activation that is not known here, or is too
            large for one file.
    """
    if problem := obstacle(student):
        raise CotdError(f"{problem}. Use another format or runtime.")
    with torch.no_grad():
        return LabelGraph(student).build()


def obstacle(student: Student) -> str | None:
    """Why there is no graph of a student, or None."""
    config = student.model.config
    if problem := label_step_obstacle(student):
        return f"the ONNX graph {problem}"
    if config.dense_act_fn not in ACTIVATIONS:
        return f"the ONNX graph knows the activations {', '.join(ACTIVATIONS)}, and this student has {config.dense_act_fn}"
    if 4 * sum(p.numel() for p in student.model.parameters()) > MAX_BYTES:
        return "this student is too large for one ONNX file, which holds 2 GiB"
    return None


class LabelGraph:
    """Nodes and weights of a graph that is being written. Methods for arithmetic take and return names of values."""

    def __init__(self, student: Student):
        self.student, self.model, self.config = student, student.model, student.model.config
        self.heads, self.head_size = self.config.num_heads, self.config.d_kv
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.numbers = itertools.count()

    def build(self) -> onnx.ModelProto:
        """The whole graph."""
        model, config = self.model, self.config
        encoder = [tuple(block.layer) for block in model.encoder.block]
        decoder = [tuple(block.layer) for block in model.decoder.block]
        longest = self.student.max_input_tokens
        position_bias = encoder[0][0].SelfAttention.compute_bias(longest, longest, device=model.device)

        real = self.node("Cast", INPUTS[1], to=TensorProto.BOOL)
        hidden = self.node("Where", real, self.weight(np.float32(0)), self.weight(np.float32(-np.inf)))
        padding = self.node("Unsqueeze", hidden, self.ints(1, 2))  # (B, 1, 1, T)
        length = self.node("Shape", INPUTS[0], start=1, end=2)
        corner = self.node(
            "Slice", self.weight(position_bias), self.ints(0, 0), self.node("Concat", length, length, axis=0), self.ints(2, 3)
        )
        bias = self.node("Add", corner, padding)  # (B, heads, T, T)

        encoded = self.node("Gather", self.weight(model.shared.weight), INPUTS[0])  # (B, T, d)
        for attention, feed_forward in encoder:
            layer = attention.SelfAttention
            normed = self.norm(encoded, attention.layer_norm)
            queries, keys, values = self.products(normed, layer.q.weight, layer.k.weight, layer.v.weight)
            encoded = self.node("Add", encoded, self.attend(layer, queries, keys, values, bias))
            encoded = self.feed_forward(encoded, feed_forward)
        encoded = self.norm(encoded, model.encoder.final_layer_norm)

        cross = [layer.EncDecAttention for _, layer, _ in decoder]
        keys_and_values = self.products(encoded, *(weight for layer in cross for weight in (layer.k.weight, layer.v.weight)))
        start = model.shared.weight[config.decoder_start_token_id]
        decoded = self.weight(start[None, None])  # (1, 1, d)
        for number, (self_attention, cross_attention, feed_forward) in enumerate(decoder):
            # A single position attends to itself alone: its values, whatever the scores.
            layer = self_attention.SelfAttention
            normed = self.norm(decoded, self_attention.layer_norm)
            decoded = self.node("Add", decoded, self.product(normed, layer.o.weight.double() @ layer.v.weight.double()))
            layer = cross_attention.EncDecAttention
            queries = self.product(self.norm(decoded, cross_attention.layer_norm), layer.q.weight)
            keys, values = keys_and_values[2 * number : 2 * number + 2]
            decoded = self.node("Add", decoded, self.attend(layer, queries, keys, values, padding))
            decoded = self.feed_forward(decoded, feed_forward)
        scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        verbalizers = model.lm_head.weight[self.student.first_tokens] * scale
        scores = self.product(self.norm(decoded, model.decoder.final_layer_norm), verbalizers)  # (B, 1, labels)
        self.nodes.append(helper.make_node("Squeeze", [scores, self.ints(1)], [OUTPUT]))

        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in INPUTS]
        output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(self.student.task.labels)])
        graph = helper.make_graph(self.nodes, "label", inputs, [output], self.weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="cotd"
        )

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node of one output."""
        return self.outputs(operator, inputs, 1, **attributes)[0]

    def outputs(self, operator: str, inputs: Any, outputs: int, **attributes: Any) -> list[str]:
        """Adds a node of several outputs."""
        names = [f"{operator}_{next(self.numbers)}" for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def weight(self, value: Any) -> str:
        """A constant: a tensor, in float32, or an array as it is."""
        if isinstance(value, torch.Tensor):
            value = np.ascontiguousarray(value.detach().float().cpu().numpy())
        name = f"weight_{next(self.numbers)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        """A constant vector of integers."""
        return self.weight(np.array(values, dtype=np.int64))

    def product(self, x: str, weight: torch.Tensor) -> str:
        """(…, d) by a linear layer's weight (out, d): (…, out)."""
        return self.node("MatMul", x, self.weight(weight.T))

    def products(self, x: str, *weights: torch.Tensor) -> list[str]:
        """The products by several weights, computed as one."""
        sizes = self.ints(*(len(weight) for weight in weights))
        return self.outputs("Split", [self.product(x, torch.cat(weights)), sizes], len(weights), axis=-1)

    def norm(self, x: str, layer: Any) -> str:
        """Root mean square normalisation, in the nodes that ONNX Runtime computes as one."""
        mean = self.node("ReduceMean", self.node("Pow", x, self.weight(np.float32(2))), self.ints(-1), keepdims=1)
        size = self.node("Sqrt", self.node("Add", mean, self.weight(np.float32(self.config.layer_norm_epsilon))))
        return self.node("Mul", self.weight(layer.weight), self.node("Div", x, size))

    def attend(self, layer: Any, queries: str, keys: str, values: str, bias: str) -> str:
        """(B, Q, heads · size), twice (B, T, heads · size), and what is added to the scores → (B, Q, d). T5 does not scale them."""

        def split(x: str, order: tuple[int, ...]) -> str:
            apart = self.node("Reshape", x, self.ints(0, 0, self.heads, self.head_size))
            return self.node("Transpose", apart, perm=order)

        across = self.node("MatMul", split(queries, (0, 2, 1, 3)), split(keys, (0, 2, 3, 1)))  # (B, heads, Q, T)
        weights = self.node("Softmax", self.node("Add", across, bias), axis=-1)
        mixed = self.node("Transpose", self.node("MatMul", weights, split(values, (0, 2, 1, 3))), perm=(0, 2, 1, 3))
        return self.product(self.node("Reshape", mixed, self.ints(0, 0, self.heads * self.head_size)), layer.o.weight)

    def feed_forward(self, x: str, layer: Any) -> str:
        """A feed-forward layer with its residual connection."""
        dense, normed = layer.DenseReluDense, self.norm(x, layer.layer_norm)
        operator, attributes = ACTIVATIONS[self.config.dense_act_fn]
        if hasattr(dense, "wi"):  # v1.0
            inner = self.node(operator, self.product(normed, dense.wi.weight), **attributes)
        else:  # v1.1, gated
            gate, linear = self.products(normed, dense.wi_0.weight, dense.wi_1.weight)
            inner = self.node("Mul", self.node(operator, gate, **attributes), linear)
        return self.node("Add", x, self.product(inner, dense.wo.weight))
