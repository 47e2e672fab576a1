"""alltoall for torch tensors: each rank sends some rows to each other rank. Its gradient is one, too:

y on rank r = (rows for r of x0; rows for r of x1; ...)      dx = alltoall of dy, with the rows that came as splits
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringred import asynchronous
from ringred.handles import Handle
from ringred.process_sets import ProcessSet, checked_set, global_process_set
from ringred.torch.allreduce import gradient_name, wants_gradient

Splits = torch.Tensor | Sequence[int] | None
Received = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def alltoall(
    tensor: torch.Tensor,
    splits: Splits = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Received:
    """Send rows of `tensor` to all ranks and return the rows that they sent here, in rank order. Differentiable.

    Args:
        tensor: at least 1-dim, of any dtype that allreduce takes; the first dimension may differ between
            ranks, the others and the dtype may not.
        splits: how many rows go to each rank of the set, in rank order: a list or 1-dim integer tensor whose sum is
            the number of rows. None sends the same number to each.
        name: what ranks match the call by; None numbers calls.
        process_set: the ranks that take part.

    Returns:
        The rows; with `splits`, also how many came from each rank, an int32 tensor of one number per rank.

    Raises:
        UsageError: splits do not fit the tensor or the set.
        MismatchError: ranks differ in dtype or in another dimension than the first.
        PeerLostError, TimeoutError: a rank died, left or did not come.
    """
    if not wants_gradient([tensor]):
        return alltoall_async(tensor, splits, name, process_set).wait()
    rows, received = _Alltoall.apply(tensor, splits, name, process_set)  # type: ignore[no-untyped-call]
    return rows if splits is None else (rows, received)


def alltoall_async(
    tensor: torch.Tensor,
    splits: Splits = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[Received]:
    """Start an alltoall and return its handle. Not differentiable. See alltoall."""
    handle = _start(tensor, splits, name, process_set)
    return handle.then(lambda result: result[0] if splits is None else result)


def _start(
    tensor: torch.Tensor, splits: Splits, name: str | None, process_set: ProcessSet
) -> Handle[tuple[torch.Tensor, torch.Tensor]]:
    """Start an alltoall; the handle's result has the received splits, whether or not splits are given."""
    size = checked_set(process_set).size()
    even = splits is None and tensor.dim() > 0 and tensor.shape[0] % size == 0
    told = [tensor.shape[0] // size] * size if even else splits
    handle = asynchronous.alltoall_async(tensor, told, name=name, process_set=process_set)
    return handle.then(lambda result: (result[0], result[1].to(torch.int32)))


class _Alltoall(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, splits: Splits, name: str | None, process_set: ProcessSet
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, received = _start(tensor, splits, name, process_set).wait()
        ctx.received, ctx.name, ctx.process_set = received, gradient_name(name), process_set
        ctx.mark_non_differentiable(received)
        return rows, received

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, _ = alltoall(gradient, ctx.received, ctx.name, ctx.process_set)
        return rows, None, None, None
