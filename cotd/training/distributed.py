"""Training by several workers: each has the whole model, computes its part of a batch's gradients, and adds up all parts.

PyTorch's DistributedDataParallel sums gradients only where the model is called through it. Losses here call parts of the model,
so that it would leave each worker with its own gradients, and a student of its own: they are summed here, explicitly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed

AT_ONCE = 2**25  # numbers that are sent together: 128 MiB of float32


def leave_unwrapped(trainer: Any) -> None:
    """Keeps transformers' Trainer from wrapping its model, which would only cost memory: see the module.

    Nor is its `forward` to compute in bfloat16, as mixed precision has it: a student is selected and scored as it is served.
    """
    accelerator = trainer.accelerator
    prepare = accelerator.prepare_model

    def prepare_bare(model: Any, **_: Any) -> Any:
        return accelerator.unwrap_model(prepare(model, evaluation_mode=True), keep_fp32_wrapper=False)

    accelerator.prepare_model = prepare_bare


def train_on_one_gpu(arguments: Any) -> None:
    """Has transformers' TrainingArguments take one GPU a process, however many it sees: batches would be dealt out to all."""
    if arguments.world_size == 1:
        arguments._n_gpu = min(1, arguments.n_gpu)


def sum_gradients(parameters: Iterable[Any], *others: Tensor, mean: bool = False) -> None:
    """Replaces gradients, and other tensors of their kind, by their sums over all workers, in place.

    A worker whose part gave a parameter no gradient counts as zero. One worker alone is left as it is.

    Args:
        mean: the mean in place of the sum.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    trained = [p for p in parameters if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for group in groups([*(p.grad for p in trained), *others]):
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        distributed.all_reduce(flat)
        if mean:
            flat /= distributed.get_world_size()
        for tensor, summed in zip(group, flat.split([t.numel() for t in group]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def groups(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, so many together as are sent at once."""
    group: list[Tensor] = []
    for tensor in tensors:
        if group and sum(t.numel() for t in group) + tensor.numel() > AT_ONCE:
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group
