"""broadcast for torch tensors.

    y = x of the root      dx = sum over ranks of their dy on the root, zeros elsewhere

The gradient is a sum over ranks (see allreduce.py for the rule); Horovod averages it (horovod#2654).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringred import asynchronous, world
from ringred.handles import Handle
from ringred.ops import Op
from ringred.process_sets import ProcessSet, global_process_set
from ringred.torch.allreduce import (
    Reduction,
    Tensors,
    first_of,
    gradient_name,
    reduce_differentiably,
    wants_gradient,
)
from ringred.torch.places import in_place


def broadcast(
    tensor: torch.Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> torch.Tensor:
    """Return the root's tensor on every rank, as a new tensor. Differentiable.

    Args:
        tensor: of any shape and any dtype that allreduce takes; the same shape and dtype on all ranks.
        root_rank: a rank of the whole job, also with a process set, which it must belong to.
        name: what ranks match the call by; None numbers calls.
        process_set: the ranks that take part.

    Raises:
        UsageError: root_rank is no rank of the set, or the tensor is not one of these.
        MismatchError: ranks differ in dtype, shape or root_rank.
        PeerLostError, TimeoutError: a rank died, left or did not come.
    """
    if not wants_gradient([tensor]):
        return broadcast_async(tensor, root_rank, name, process_set).wait()
    result: torch.Tensor = _Broadcast.apply(tensor, root_rank, name, process_set)  # type: ignore[no-untyped-call]
    return result


def broadcast_async(
    tensor: torch.Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[torch.Tensor]:
    """Start a broadcast and return its handle. Not differentiable. See broadcast."""
    return asynchronous.broadcast_async(tensor, root_rank, name=name, process_set=process_set)


def broadcast_(
    tensor: torch.Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> torch.Tensor:
    """Overwrite `tensor` with the root's and return it. Not differentiable. See broadcast."""
    return broadcast_async_(tensor, root_rank, name, process_set).wait()


def broadcast_async_(
    tensor: torch.Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[torch.Tensor]:
    """Start a broadcast in place and return its handle. Not differentiable. See broadcast."""
    return first_of(grouped_broadcast_async_([tensor], root_rank, name, process_set))


def grouped_broadcast_async_(
    tensors: Sequence[torch.Tensor],
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[Tensors]:
    """Start the broadcast of several tensors in place, which travel together; dtypes may differ. See broadcast_."""

    def begin(targets: Tensors) -> Handle[Tensors]:
        return asynchronous.grouped_broadcast_async_(targets, root_rank, name=name, process_set=process_set)

    return in_place(tensors, begin)


class _Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, root_rank: int, name: str | None, process_set: ProcessSet
    ) -> torch.Tensor:
        ctx.gradients = Reduction(Op.Sum, gradient_name(name), process_set=process_set)
        ctx.is_root = world.rank() == root_rank
        return broadcast_async(tensor, root_rank, name, process_set).wait()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (summed,) = reduce_differentiably([gradient], ctx.gradients)
        return (summed if ctx.is_root else torch.zeros_like(summed)), None, None, None
