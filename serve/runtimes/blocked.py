"""Linear layers whose weights are laid out for the processor once.

oneDNN multiplies weights in blocks that suit the processor. PyTorch lays them out anew for each product, which takes a quarter of
the time of a text's few rows. These are the operators that torch.compile uses, without its compiler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROWS = 32  # tokens of a text, which the layout is chosen for; it computes any number


class BlockedLinear(nn.Module):
    """A linear layer in bfloat16, for inference on a CPU."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def lay_out_weights(model: Any) -> None:
    """Replaces the linear layers of a model in bfloat16, but for its output layer, of which few columns are computed."""
    if model.device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    output = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear and layer is not output:
                setattr(module, name, BlockedLinear(layer))
