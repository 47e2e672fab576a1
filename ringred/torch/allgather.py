"""allgather for torch tensors: rows of all ranks, one after the other.

    y = (x0; x1; ...)      dx = sum over ranks of their dy, rows of this rank

The gradient is a sum over ranks (see allreduce.py for the rule). Horovod averages it, which its users contest
(horovod#2654): divide by size() where a script has learned to live with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringred import asynchronous
from ringred.handles import Handle
from ringred.ops import Op
from ringred.process_sets import ProcessSet, global_process_set
from ringred.torch.allreduce import Reduction, Tensors, first_of, gradient_name, reduce_differentiably, wants_gradient


def allgather(
    tensor: torch.Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> torch.Tensor:
    """Return the rows of all ranks' tensors, in rank order. Differentiable.

    Args:
        tensor: at least 1-dim, of any dtype that allreduce takes. The first dimension may differ between
            ranks and be 0, the others and the dtype may not.
        name: what ranks match the call by; None numbers calls.
        process_set: the ranks that take part.

    Raises:
        UsageError: the tensor is 0-dim or not one of these.
        MismatchError: ranks differ in dtype or in another dimension than the first.
        PeerLostError, TimeoutError: a rank died, left or did not come.
    """
    return grouped_allgather([tensor], name, process_set)[0]


def allgather_async(
    tensor: torch.Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[torch.Tensor]:
    """Start an allgather and return its handle. Not differentiable. See allgather."""
    return first_of(grouped_allgather_async([tensor], name, process_set))


def grouped_allgather(
    tensors: Sequence[torch.Tensor], name: str | None = None, process_set: ProcessSet = global_process_set
) -> Tensors:
    """Gather several tensors, which travel together. Dtypes may differ. Differentiable. See allgather."""
    if not wants_gradient(tensors):
        return grouped_allgather_async(tensors, name, process_set).wait()
    return list(_Allgather.apply(name, process_set, *tensors))  # type: ignore[no-untyped-call]


def grouped_allgather_async(
    tensors: Sequence[torch.Tensor], name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[Tensors]:
    """Start a grouped allgather and return its one handle. Not differentiable. See allgather."""
    return asynchronous.grouped_allgather_async(tensors, name=name, process_set=process_set)


class _Allgather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str | None, process_set: ProcessSet, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        pairs = asynchronous.gathered_async(tensors, name=name, process_set=process_set).wait()
        rank = process_set.rank()
        ctx.gradients = Reduction(Op.Sum, gradient_name(name), process_set=process_set)
        ctx.own_rows = [slice(sum(rows[:rank]), sum(rows[: rank + 1])) for _, rows in pairs]
        ctx.differentiable = [tensor.is_floating_point() or tensor.is_complex() for tensor in tensors]
        return tuple(gathered for gathered, _ in pairs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        chosen = [gradient for gradient, use in zip(gradients, ctx.differentiable, strict=True) if use]
        summed = iter(reduce_differentiably(chosen, ctx.gradients))
        pairs = zip(ctx.own_rows, ctx.differentiable, strict=True)
        return (None, None, *(next(summed)[rows] if use else None for rows, use in pairs))
