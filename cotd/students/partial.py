"""Training a part of a model's weights: its last layers, or low-rank additions that are merged into it at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cotd.students.backends.kinds import model_class


def layer_stacks(model: Any) -> list[Any]:
    """The stacks of like layers of a model: one of a causal model or an encoder, two of an encoder-decoder."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    inner = {id(module) for outer in lists for layer in outer for module in layer.modules()}
    return [module for module in lists if id(module) not in inner]


def train_last_layers(model: Any, count: int) -> None:
    """Freezes all weights but those of the last so many layers of each stack and of what follows them: norms, an output layer.

    Embeddings stay as they are, and so does an output layer that shares their weights.
    """
    stacks = layer_stacks(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    # BART's `layernorm_embedding` belongs to what precedes the layers, too.
    embeddings = {
        id(p)
        for name, module in model.named_modules()
        if "Embedding" in type(module).__name__ or "embed" in name.rpartition(".")[2]
        for p in module.parameters()
    }
    in_stacks = {id(p) for stack in stacks for p in stack.parameters()}
    last = [p for stack in stacks for layer in stack[-count:] for p in layer.parameters()]
    for parameter in [*last, *(p for p in model.parameters() if id(p) not in embeddings | in_stacks)]:
        parameter.requires_grad_(True)


def add_lora(model: Any, rank: int, alpha: int, targets: Sequence[str] | None) -> None:
    """Puts low-rank additions beside layers, in place, and freezes all else but a classification head.

    Args:
        targets: names of layers; None: every linear layer but the output.
    """
    from peft import LoraConfig, inject_adapter_in_model

    heads = [name for name in ("classifier", "score") if hasattr(model, name)]
    chosen = list(targets) if targets else "all-linear"
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen, exclude_modules=heads or None)
    inject_adapter_in_model(config, model)
    for name in heads:  # random until now
        getattr(model, name).requires_grad_(True)


def merge_lora(model: Any) -> None:
    """Adds low-rank additions to their layers' weights, so that a plain model is left; one without any stays as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model.requires_grad_(True)


def skeleton(config: Any, kind: str) -> Any:
    """A model of a configuration without its weights."""
    import torch

    with torch.device("meta"):
        return model_class(kind).from_config(config)


def partial_problem(model: Any, last_layers: int | None, targets: Sequence[str] | None) -> str | None:
    """Why a part of a model cannot be trained, or None.

    Args:
        last_layers: as of `train_last_layers`, or None. targets: as of `add_lora`, or None.
    """
    fewest = min(map(len, layer_stacks(model)), default=0)
    if last_layers and last_layers > fewest:
        return f"training.finetune.last_layers is {last_layers}, and the model has {fewest} layers. Lower it, or use full."
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if "Linear" in type(module).__name__ or "Conv1D" in type(module).__name__
    }
    if missing := [target for target in targets or [] if target.rpartition(".")[2] not in names]:
        return (
            f"training.finetune.lora.targets: the model has no layer {', '.join(missing)}. Its layers are {', '.join(sorted(names))}; "
            "leave targets out for all of them."
        )
    return None
