"""Training by several workers: each has the whole model, computes its part of a batch's gradients, and adds up all parts.

PyTorch's DistributedDataParallel sums gradients only if the model is called through it. The losses here call parts of the model,
and each worker would keep its own gradients, and train a student of its own: they are summed here, explicitly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

BUCKET_SIZE = 2**25  # numbers that are sent together: 128 MiB of float32

T = TypeVar("T", bound=Any)


def leave_unwrapped(trainer: Any) -> None:
    """Keeps transformers' Trainer from wrapping its model, which would only cost memory: see the module.

    Nor does its `forward` then compute in bfloat16 in mixed precision: a student is selected and scored as it is served.
    """
    accelerator = trainer.accelerator
    prepare = accelerator.prepare_model

    def prepare_bare(model: Any, **_: Any) -> Any:
        return accelerator.unwrap_model(prepare(model, evaluation_mode=True), keep_fp32_wrapper=False)

    accelerator.prepare_model = prepare_bare


def use_one_gpu(arguments: Any) -> None:
    """Has transformers' TrainingArguments use one GPU a process: batches would be dealt out to all that it sees."""
    if arguments.world_size == 1:
        arguments._n_gpu = min(1, arguments.n_gpu)


def several_workers() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def latest_of_all(seen: Iterable[T]) -> T | None:
    """The greatest of what every worker sees, the same for each of them; None if they see nothing in common.

    Where workers do not share a folder, the first may have checkpoints that the others do not have yet, or no longer.
    """
    everyones = [list(seen)]
    if several_workers():
        everyones *= distributed.get_world_size()
        distributed.all_gather_object(everyones, everyones[0])
    return max(set.intersection(*map(set, everyones)), default=None)


def share_weights(model: torch.nn.Module) -> None:
    """Gives every worker the first one's weights, in place."""
    if several_workers():
        for tensor in model.state_dict().values():
            distributed.broadcast(tensor, src=0)


def sum_gradients(parameters: Iterable[Any], *others: Tensor) -> None:
    """Replaces gradients, and other tensors like them, by their sums over all workers, in place.

    A parameter without a gradient on a worker counts as zero there. A single worker changes nothing.
    """
    if not several_workers():
        return
    trained = [p for p in parameters if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in buckets([*(p.grad for p in trained), *others]):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        distributed.all_reduce(flat)
        for tensor, summed in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, in lists of at most BUCKET_SIZE numbers; a larger tensor is alone."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET_SIZE:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
